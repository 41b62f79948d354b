"""CETNet (arXiv 2411.13700): N different CTR models, each with its own tables, trained to work together."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cetnet.models.batch import Batch
from cetnet.models.collaboration import StalePredictions, collaboration_loss
from cetnet.models.component import Component, Inputs, Output
from cetnet.models.component_config import ComponentConfig
from cetnet.models.config import CETNetConfig
from cetnet.models.embeddings import InputAssembly, TableOptions, Tables
from cetnet.models.fusion import make_fusion
from cetnet.models.layers.mlp import start_at
from cetnet.models.layers.sequences import rows_by_length
from cetnet.models.registry import component_class
from cetnet.models.schema import Schema
from cetnet.models.teaching import SoftLabels


class Predictions(NamedTuple):
    """What one step leaves behind for metrics, detached.

    Attributes:
        logits: `[outputs, B]` float32, in the order of `CETNet.outputs`.
        label: `[B]`.
        weight: `[B]`, 0 for padding and skipped rows.
        row: `[B]`, -1 for padding and skipped rows.
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
        config: components, fusion, collaboration.
        is_dense: of a table's full name (`<component>__<table>`), whether it is held whole everywhere.
        table_device: device of the tables that will be sharded; `meta` leaves their memory to the sharding.
        device: device of everything else.
        bf16: run the components (not fusion and losses) under bfloat16 autocast.
        table_type: data type of the tables that will be sharded; dense and pretrained ones are float32.
        buckets: parts that tables with managed collision are cut into: a multiple of every world size.
        stale_rows: rows that codistillation scores at a time, over all processes.
        soft_labels: the loss of a student, whose batches have their teachers' logits; None without teachers.

    Attributes:
        tables: sets of tables: each component's, or `shared`; and `pretrained`, which all read and none trains.
        towers: the members, each a component's way from looked-up rows to its output.
        sources: names of the sets of tables that each member reads.
        outputs: names of the outputs, `CETNetConfig.outputs`.
        table_std: standard deviation of the initial values of each table, by its full name.
        stale: what codistillation goes on with after a resumption; None without it.

    Raises:
        ValueError: the components or the fusion can't be built for these features.
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
        table_type: DataType = DataType.FP32,
        buckets: int = 1,
        stale_rows: int = 0,
        soft_labels: SoftLabels | None = None,
    ) -> None:
        super().__init__()
        device = torch.device(device)
        options = TableOptions(is_dense, torch.device(table_device), device, table_type, buckets=buckets)
        # Tables draw nothing from the generator that the rest starts from: their values come when they are sharded.
        with device, torch.random.fork_rng(devices=[]):
            tables = _tables(schema, config, options)
        self.sources = {
            name: [s for s in (name, "shared", "pretrained") if s in tables] for name in config.components
        }
        # Drawn on the CPU, so that training starts alike on a GPU; on `meta` there is nothing to draw.
        with device if device.type == "meta" else torch.device("cpu"):
            members = {}
            for name, component in config.components.items():
                cls = component_class(component.kind)
                assembly = InputAssembly(schema, [tables[s] for s in self.sources[name]], cls, component)
                members[name] = Member(cls, component, assembly, bf16)
            self.towers = Members(members, self.sources)  # the name is part of the keys of checkpoints
            self.tables = nn.ModuleDict(tables)
            dims = [member.component.output_dim for member in members.values()]
            self.objective = Objective(dims, config, soft_labels)
        self.towers.to(device)
        self.objective.to(device)
        several = len(config.components) > 1
        self.stale = (
            StalePredictions(stale_rows, len(config.components), device) if several and stale_rows else None
        )
        self.table_std = {
            table: owned.std
            for owner, owned in tables.items()
            if owner != "pretrained"
            for table in owned.names
        }
        self.outputs = config.outputs

    def start_at(self, probability: float) -> None:
        """Have the untrained predictions of all outputs lie around a probability, by the biases of their heads.

        From zero biases, the first hundred steps and the first update of every row would say little but that clicks
        are rare. What is set are parameters, which learn as ever.
        """
        logit = math.log(probability) - math.log1p(-probability)
        for member in self.towers.values():
            cast(Member, member).component.start_at(logit)
        start_at(self.objective, logit)

    def forward(self, batch: Batch) -> tuple[Tensor, Predictions]:
        """Loss (scalar) and predictions of a batch.

        The loss is the weighted sum over rows divided by B, not by the sum of the weights, so that its
        mean over ranks is the same for every world size, padding included.
        """
        looked_up = {name: tables(batch.sparse) for name, tables in self.tables.items()}
        outputs = self.towers(looked_up, batch.sparse, batch.dense)
        return self.objective(outputs, batch.label, batch.weight, batch.row, batch.teachers, batch.peers)


def _tables(schema: Schema, config: CETNetConfig, options: TableOptions) -> dict[str, Tables]:
    """The sets of tables by their owners, in the order in which components come."""
    classes = {name: component_class(component.kind) for name, component in config.components.items()}
    any_reads_sequences = any(cls.reads_sequences for cls in classes.values())
    tables: dict[str, Tables] = {}
    for name, component in config.components.items():
        dims = {table: component.embedding_dim for table in schema.tables if table not in schema.pretrained}
        options = options._replace(std=component.embedding_std)
        tables[name] = Tables(
            name,
            schema,
            {} if config.shared_tables else dims,
            reads_sequences=classes[name].reads_sequences,
            extra=classes[name].extra_tables(component, schema.features),
            options=options,
        )
        if config.shared_tables and "shared" not in tables:
            tables["shared"] = Tables(
                "shared", schema, dims, reads_sequences=any_reads_sequences, options=options
            )
    if schema.pretrained:
        whole = TableOptions(lambda _: True, options.device, options.dense_device)
        tables["pretrained"] = Tables(
            "pretrained", schema, schema.pretrained, reads_sequences=any_reads_sequences, options=whole
        ).requires_grad_(False)
    return tables


class Members(nn.ModuleDict):
    """Everything that needs no communication, in one module: the train pipeline does not trace into it.

    Args:
        members: by component.
        sources: the sets of tables that each reads.

    Attributes:
        on_inputs: if set, what the inputs of all components go through, before the first of them computes.

    Raises:
        ValueError: a component has the name of an attribute.
    """

    on_inputs: Callable[[list[Inputs]], list[Inputs]] | None = None

    def __init__(self, members: dict[str, "Member"], sources: dict[str, list[str]]) -> None:
        super().__init__()
        self._sources = sources
        for name in members:
            if hasattr(self, name):
                raise ValueError(
                    f"{name!r} can't be a component's name, since PyTorch's modules have an attribute "
                    "of that name; rename it"
                )
        self.update(members)

    def forward(self, looked_up: dict[str, list], sparse: KeyedJaggedTensor, dense: Tensor) -> list[Output]:
        """Outputs of the sets of tables, the ids looked up, dense `[B, m]` -> the components' outputs."""
        counts = dict(zip(sparse.keys(), sparse.lengths().view(-1, len(dense)), strict=True))
        inputs = [
            cast(Member, member).assembly(
                [rows for source in self._sources[name] for rows in looked_up[source]], counts, dense
            )
            for name, member in self.items()
        ]
        if self.on_inputs is not None:
            inputs = self.on_inputs(inputs)
        return [member(each) for member, each in zip(self.values(), inputs, strict=True)]


class Member(nn.Module):
    """A component of the ensemble and the way to its inputs."""

    def __init__(
        self, cls: type[Component], config: ComponentConfig, assembly: InputAssembly, bf16: bool
    ) -> None:
        super().__init__()
        self.assembly = assembly
        self.component = cls(assembly.shape, config)
        self.bf16 = bf16

    def forward(self, inputs: Inputs) -> Output:
        """The component's output."""
        if self.bf16:
            # Once, here: what an operation takes from a float32 tensor it would read whole and cast each time.
            tokens, sequences = inputs.tokens.bfloat16(), inputs.sequences.bfloat16()
            inputs = inputs._replace(tokens=tokens, sequences=sequences)
        with torch.autocast(inputs.dense.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            apart = self.component.rows_apart and inputs.lengths.shape[1] > 0
            return self._by_length(inputs) if apart else self.component(inputs)

    def _by_length(self, inputs: Inputs) -> Output:
        """The component's output, computed apart for rows of like lengths, each padded to their own longest."""
        groups = rows_by_length(inputs.lengths)
        if len(groups) == 1:
            return self.component(inputs)
        outputs: list[Output] = []
        for rows, longest in groups:
            shorter = inputs._replace(sequences=inputs.sequences[:, :, :longest])
            outputs.append(self.component(Inputs(*(tensor.index_select(0, rows) for tensor in shorter))))
        back = torch.cat([rows for rows, _ in groups]).argsort()
        auxiliary = [output.auxiliary for output in outputs if output.auxiliary is not None]
        return Output(
            torch.cat([output.embedding for output in outputs])[back],
            torch.cat([output.logit for output in outputs])[back],
            torch.cat(auxiliary)[back] if auxiliary else None,
        )


class Objective(nn.Module):
    """Fusion and losses, in float32: L = BCE(fused) + w sum_m BCE(m) + collaboration (paper, section 3.4.4).

    Students have each BCE mixed with that of `SoftLabels`.
    """

    def __init__(
        self, dims: Sequence[int], config: CETNetConfig, soft_labels: SoftLabels | None = None
    ) -> None:
        super().__init__()
        self.fusion = make_fusion(dims, config.fusion) if len(dims) > 1 else None
        self._component_weight, self._collaboration = config.component_weight, config.collaboration
        self.soft_labels = soft_labels

    def forward(
        self,
        outputs: list[Output],
        label: Tensor,
        weight: Tensor,
        row: Tensor,
        teachers: Tensor | None = None,
        peers: Tensor | None = None,
    ) -> tuple[Tensor, Predictions]:
        """Outputs of the components and the rest of `Batch` -> loss and predictions."""
        logits = torch.stack([output.logit.float() for output in outputs])  # [N, B]
        if self.fusion is None:
            bce, of_gate = self._losses(logits, label, teachers)
            per_row = bce.sum(0)
        else:
            fused = self.fusion([output.embedding for output in outputs], logits.T)
            collaboration = collaboration_loss(self._collaboration, logits.T, fused, peers)
            logits = torch.cat([fused[None], logits])
            bce, of_gate = self._losses(logits, label, teachers)
            # A weight of 0 still gives the components' heads a gradient, zero, which DDP waits for.
            per_row = bce[0] + self._component_weight * bce[1:].sum(0)
            if collaboration is not None:
                per_row = per_row + collaboration
            if not self._component_weight:
                logits = logits[:1]
        for output in outputs:
            if output.auxiliary is not None:
                per_row = per_row + output.auxiliary.float()
        if of_gate is not None:
            per_row = per_row + of_gate
        loss = (per_row * weight).sum() / len(label)
        return loss, Predictions(logits.detach(), label, weight, row, loss.detach())

    def _losses(self, logits: Tensor, label: Tensor, teachers: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The loss of each output and row, `[outputs, B]`, and that of the gate between several teachers, `[B]`."""
        bce = F.binary_cross_entropy_with_logits(logits, label.expand_as(logits), reduction="none")
        if self.soft_labels is None or not self.training:
            return bce, None
        assert teachers is not None, "a student's batches have its teachers' logits"
        return self.soft_labels(logits, bce, label, teachers)
