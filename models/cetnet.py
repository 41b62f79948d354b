"""CETNet (arXiv 2411.13700): N different CTR models, each with its own tables, trained to work together."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.collaboration import symmetric_kl
from models.component import Component, ComponentConfig
from models.config import CETNetConfig
from models.embeddings import ComponentTables, InputAssembly
from models.fusion import Fusion
from models.registry import component_class
from models.schema import Schema


class RowBatch(Protocol):
    """What CETNet reads of a batch: ids, dense `[B, m]`, label `[B]`, weight `[B]`, row `[B]`."""

    sparse: KeyedJaggedTensor
    dense: Tensor
    label: Tensor
    weight: Tensor
    row: Tensor


class Predictions(NamedTuple):
    """What one step leaves behind for metrics, detached.

    Attributes:
        logits: `[outputs, B]` float32, in the order of `CETNet.outputs`.
        label: `[B]`.
        weight: `[B]`, 0 for padding.
        row: `[B]`, -1 for padding.
        loss: scalar, of this rank's rows.
    """

    logits: Tensor
    label: Tensor
    weight: Tensor
    row: Tensor
    loss: Tensor


class CETNet(nn.Module):
    """An ensemble of components with separate tables (paper, section 3); with one component, that model.

    Args:
        schema: features and tables.
        config: components, fusion, KL.
        is_dense: of a table's full name (`<component>__<table>`), whether it is held whole everywhere.
        table_device: device of the tables that will be sharded; `meta` leaves their memory to the sharding.
        device: device of everything else.
        bf16: run the components (not fusion and losses) under bfloat16 autocast.

    Attributes:
        outputs: names of the outputs: `fused`, then, in an ensemble, each component.
    """

    def __init__(
        self,
        schema: Schema,
        config: CETNetConfig,
        *,
        is_dense: Callable[[str], bool] = lambda _: False,
        table_device: torch.device | str = "cpu",
        device: torch.device | str = "cpu",
        bf16: bool = False,
    ) -> None:
        super().__init__()
        table_device, device = torch.device(table_device), torch.device(device)
        members: dict[str, Member] = {}
        with device:
            for name, component in config.components.items():
                cls = component_class(component.kind)
                tables = ComponentTables(
                    name, schema, component, cls.reads_sequences, is_dense, table_device, device
                )
                tower = Tower(cls, component, InputAssembly(schema, tables, component), bf16)
                members[name] = Member(tables, tower)
            self.members = nn.ModuleDict(members)
            self.objective = Objective([member.output_dim for member in members.values()], config)
        self.outputs = ["fused", *(config.components if len(config.components) > 1 else [])]
        self.table_std = {
            f"{name}__{table}": component.embedding_std
            for name, component in config.components.items()
            for table in schema.tables
        }

    def forward(self, batch: RowBatch) -> tuple[Tensor, Predictions]:
        """Loss (scalar) and predictions of a batch.

        The loss is the weighted sum over rows divided by B, not by the sum of the weights, so that its
        mean over ranks is the same for every world size, padding included.
        """
        members = [member(batch.sparse, batch.dense) for member in self.members.values()]
        return self.objective(members, batch.label, batch.weight, batch.row)


class Member(nn.Module):
    """A component with its own tables."""

    def __init__(self, tables: ComponentTables, tower: "Tower") -> None:
        super().__init__()
        self.tables, self.tower = tables, tower
        self.output_dim = tower.component.output_dim

    def forward(self, sparse: KeyedJaggedTensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Output embedding `[B, D]` and logit `[B]`."""
        return self.tower(self.tables(sparse), dense)


class Tower(nn.Module):
    """Everything of a member that needs no communication; the train pipeline does not trace into it."""

    def __init__(
        self, cls: type[Component], config: ComponentConfig, assembly: InputAssembly, bf16: bool
    ) -> None:
        super().__init__()
        self.assembly = assembly
        self.component = cls(assembly.shape, config)
        self._bf16 = bf16

    def forward(self, looked_up: list, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Output embedding `[B, D]` and logit `[B]`."""
        inputs = self.assembly(looked_up, dense)
        with torch.autocast(dense.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            return self.component(inputs)


class Objective(nn.Module):
    """Fusion and losses, in float32: L = BCE(fused) + sum_m BCE(m) + alpha KL (paper, section 3.4.4)."""

    def __init__(self, dims: Sequence[int], config: CETNetConfig) -> None:
        super().__init__()
        self.fusion = Fusion(dims, config.fusion, config.stop_gradient) if len(dims) > 1 else None
        self._kl_weight, self._kl_detach = config.kl_weight, config.kl_detach

    def forward(
        self, members: list[tuple[Tensor, Tensor]], label: Tensor, weight: Tensor, row: Tensor
    ) -> tuple[Tensor, Predictions]:
        """Embeddings and logits of the components, label, weight, row -> loss and predictions."""
        logits = torch.stack([logit.float() for _, logit in members])  # [N, B]
        per_row = torch.zeros_like(label)
        if self.fusion is not None:
            if self._kl_weight:
                per_row = per_row + self._kl_weight * symmetric_kl(logits.T, detach=self._kl_detach)
            fused = self.fusion([embedding for embedding, _ in members], logits.T)
            logits = torch.cat([fused[None], logits])
        bce = F.binary_cross_entropy_with_logits(logits, label.expand_as(logits), reduction="none")
        loss = ((per_row + bce.sum(0)) * weight).sum() / len(label)
        return loss, Predictions(logits.detach(), label, weight, row, loss.detach())
