"""A component's own embedding tables, and the way from looked-up rows to what the component reads."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from models.component import ComponentConfig, Inputs, InputShape
from models.schema import Schema

_BLOCK_ROWS = 65_536


class DenseEmbeddingBagCollection(EmbeddingBagCollection):
    """Small pooled tables that every process holds whole: sharders go by the class, and leave this one."""


class DenseEmbeddingCollection(EmbeddingCollection):
    """Small unpooled tables that every process holds whole."""


_COLLECTIONS = {
    "pooled": EmbeddingBagCollection,
    "pooled_dense": DenseEmbeddingBagCollection,
    "unpooled": EmbeddingCollection,
    "unpooled_dense": DenseEmbeddingCollection,
}


class ComponentTables(nn.Module):
    """All tables of one component, each named `<component>__<table>`, and their lookups.

    A component that pools histories gets an EmbeddingBagCollection with mean pooling, so that pooled
    vectors, not sequences, cross the network. One that reads histories gets an EmbeddingCollection for
    the tables a sequence looks up (its target features share them) and an EmbeddingBagCollection for the
    rest. Tables that `is_dense` picks stand in collections of their own, which are not sharded.

    Args:
        name: the component's name.
        schema: features and tables.
        config: the component's embedding size.
        reads_sequences: whether the component reads histories position by position.
        is_dense: of a table's full name, whether every process holds it whole.
        device: device of the tables that will be sharded; `meta` leaves their memory to the sharding.
        dense_device: device of the dense tables.
    """

    def __init__(
        self,
        name: str,
        schema: Schema,
        config: ComponentConfig,
        reads_sequences: bool,
        is_dense: Callable[[str], bool],
        device: torch.device,
        dense_device: torch.device,
    ) -> None:
        super().__init__()
        read_in_order = {f.table for f in schema.of_kind("sequence")} if reads_sequences else set()
        groups: dict[str, list[EmbeddingConfig | EmbeddingBagConfig]] = {}
        self.collection_of: dict[str, str] = {}
        for table, rows in schema.tables.items():
            features = [f.name for f in schema.id_features if f.table == table]
            full_name = f"{name}__{table}"
            dense = is_dense(full_name)
            settings = {
                "name": full_name,
                "num_embeddings": rows,
                "embedding_dim": config.embedding_dim,
                "feature_names": features,
            }
            if table in read_in_order:
                group, embedding = "unpooled", EmbeddingConfig(**settings)
            else:
                group, embedding = "pooled", EmbeddingBagConfig(**settings, pooling=PoolingType.MEAN)
            group += "_dense" if dense else ""
            groups.setdefault(group, []).append(embedding)
            self.collection_of |= dict.fromkeys(features, group)
        self.collections = nn.ModuleDict(
            {
                group: _COLLECTIONS[group](
                    tables=tables, device=dense_device if group.endswith("dense") else device
                )
                for group, tables in sorted(groups.items())
            }
        )

    def forward(self, sparse: KeyedJaggedTensor) -> list[KeyedTensor | dict[str, JaggedTensor]]:
        """Output of each collection, in the order of `collections`."""
        return [collection(sparse) for collection in self.collections.values()]


class InputAssembly(nn.Module):
    """Looked-up embeddings -> `Inputs`. A module of its own, so that the train pipeline does not trace it.

    Embeddings are taken by feature name, in the schema's order: the columns of a sharded `KeyedTensor`
    follow the plan.
    """

    def __init__(self, schema: Schema, tables: ComponentTables, config: ComponentConfig) -> None:
        super().__init__()
        names = list(tables.collections)
        index = {feature: names.index(group) for feature, group in tables.collection_of.items()}
        self._pooled = {i for i, name in enumerate(names) if name.startswith("pooled")}
        self._single = {f.name for f in schema.of_kind("categorical")}
        tokens = schema.of_kind("categorical", "multi_valued")
        histories = schema.of_kind("sequence")
        self._sequences = [(f.name, index[f.name]) for f in histories if index[f.name] not in self._pooled]
        if not self._sequences:
            tokens = tokens + histories
        self._tokens = [(f.name, index[f.name]) for f in tokens]
        self.shape = InputShape(
            num_tokens=len(self._tokens),
            num_sequences=len(self._sequences),
            max_length=max((f.max_length or 0 for f in histories), default=0) if self._sequences else 0,
            num_dense=len(schema.dense_features),
            embedding_dim=config.embedding_dim,
        )

    def forward(self, looked_up: list[Any], dense: Tensor) -> Inputs:
        """Outputs of the collections (see `ComponentTables.forward`) and dense `[B, m]` -> `Inputs`."""
        # By `get`, since a sharded EmbeddingCollection returns a lazy dict that has no `[]`.
        tokens = [
            looked_up[i][name] if i in self._pooled else self._pool(name, looked_up[i].get(name))
            for name, i in self._tokens
        ]
        sequences, lengths = [], []
        for name, i in self._sequences:
            jagged = looked_up[i].get(name)
            sequences.append(jagged.to_padded_dense(self.shape.max_length))
            lengths.append(jagged.lengths().long())
        batch, d = dense.shape[0], self.shape.embedding_dim
        return Inputs(
            tokens=torch.stack(tokens, 1) if tokens else dense.new_zeros(batch, 0, d),
            sequences=torch.stack(sequences, 1) if sequences else dense.new_zeros(batch, 0, 0, d),
            lengths=torch.stack(lengths, 1)
            if lengths
            else torch.zeros(batch, 0, dtype=torch.int64, device=dense.device),
            dense=dense,
        )

    def _pool(self, name: str, jagged: JaggedTensor) -> Tensor:
        """Mean of each row's embeddings `[B, d]`."""
        if name in self._single:
            return jagged.values()
        lengths = jagged.lengths()
        total = torch.segment_reduce(jagged.values(), "sum", lengths=lengths.long())
        return total / lengths.clamp(min=1)[:, None]


def initial_rows(table: str, start: int, stop: int, dim: int, std: float, seed: int) -> Tensor:
    """Initial values of rows `[start, stop)` of a table, `[stop - start, dim]` float32 from N(0, std).

    A pure function of its arguments, drawn in blocks of rows: a shard can be filled without the rest of
    the table, so training starts equal under every plan and world size.
    """
    blocks = []
    for block in range(start // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)):
        digest = hashlib.sha256(f"{seed}/{table}/{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        values = torch.empty(_BLOCK_ROWS, dim).normal_(0.0, std, generator=generator)
        first = block * _BLOCK_ROWS
        blocks.append(values[max(start - first, 0) : stop - first])
    return torch.cat(blocks) if blocks else torch.empty(0, dim)
