"""Embedding tables, and the way from looked-up rows to what a component reads."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.hash_mc_evictions import HashZchEvictionConfig, HashZchEvictionPolicyName
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_embedding_modules import (
    ManagedCollisionEmbeddingBagCollection,
    ManagedCollisionEmbeddingCollection,
)
from torchrec.modules.mc_modules import ManagedCollisionCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from cetnet.models.component import Component, ExtraTable, Inputs, input_shape
from cetnet.models.component_config import ComponentConfig
from cetnet.models.layers.mlp import linear
from cetnet.models.rules import managed_table_refused
from cetnet.models.schema import Schema

BLOCK_ROWS = 65_536
"""Rows of a table whose initial values are drawn together; see `initial_rows`."""

Lookup = Literal["pooled", "unpooled", "extra"]
Storage = Literal["sharded", "dense", "managed"]

_HOURS_KEPT = 1
_KERNEL_WIDTH = 4
"""FBGEMM's kernels read rows in pieces of four numbers: a sharded table's dim must be a multiple."""


class DenseEmbeddingBagCollection(EmbeddingBagCollection):
    """Small pooled tables that every process holds whole: sharders go by the class, and leave this one."""


class DenseEmbeddingCollection(EmbeddingCollection):
    """Small unpooled tables that every process holds whole."""


class Held(NamedTuple):
    """How a collection holds its tables.

    Attributes:
        lookup: `pooled`: the vectors of a row are added up. `unpooled`: they stay in order. `extra`: pooled, for what
            a component has beside its embeddings.
        storage: `sharded`; `dense`: whole in every process; `managed`: sharded, behind a map from ids to rows.
    """

    lookup: Lookup
    storage: Storage

    @property
    def name(self) -> str:
        """Name of the collection, which is part of the keys of checkpoints."""
        return self.lookup if self.storage == "sharded" else f"{self.lookup}_{self.storage}"


class TableOptions(NamedTuple):
    """What the tables of a model have in common.

    Attributes:
        is_dense: of a table's full name, whether every process holds it whole.
        device: of the tables that will be sharded; `meta` leaves their memory to the sharding.
        dense_device: of the dense tables.
        data_type: of the tables that will be sharded; dense ones are float32.
        std: standard deviation of the initial values, and of what a row starts from when another id gets it.
        buckets: parts that tables with managed collision are cut into: a multiple of every world size.
    """

    is_dense: Callable[[str], bool]
    device: torch.device
    dense_device: torch.device
    data_type: DataType = DataType.FP32
    std: float = 0.0
    buckets: int = 1


class Tables(nn.Module):
    """A set of embedding tables, each named `<owner>__<table>`, and their lookups.

    Where histories are pooled, an EmbeddingBagCollection holds the tables, so that pooled vectors, not sequences,
    cross the network. It sums; `InputAssembly` makes means of the sums. Where they are read position by position, an
    EmbeddingCollection holds the tables a sequence looks up (its target features share them) and an
    EmbeddingBagCollection the rest. Tables that `is_dense` picks stand in collections of their own, which are
    not sharded, and so do those of `schema.managed_collision`, each with a map from ids to its rows.

    Args:
        owner: name of the component, or `shared`, or `pretrained`.
        schema: features and tables.
        dims: size of the vectors of each table that is in this set.
        reads_sequences: whether histories are read position by position.
        extra: tables of a component beside its embeddings, named `<owner>__<feature>__extra`. Sharded ones
            are as wide as the kernels need; the surplus is neither read nor trained.
        options: what they have in common with those of other sets.

    Attributes:
        owner: name of the component, or `shared`, or `pretrained`.
        names: full names of the tables.
        std: standard deviation of their initial values.
        held: how each of `collections` holds its tables, by its name.
        collection_of: name of the collection that has a feature's table.
        extra: the tables of `extra`, each with the name of its collection.

    Raises:
        ValueError: a table that is to be sharded has a dim that is not a multiple of 4; one with managed collision
            is dense, or its rows are not a multiple of `buckets`.
    """

    def __init__(
        self,
        owner: str,
        schema: Schema,
        dims: dict[str, int],
        *,
        reads_sequences: bool,
        extra: Sequence[ExtraTable] = (),
        options: TableOptions,
    ) -> None:
        super().__init__()
        read_in_order = {f.table for f in schema.of_kind("sequence")} if reads_sequences else set()
        table_of = {f.name: str(f.table) for f in schema.id_features}
        tables: dict[Held, list[EmbeddingConfig | EmbeddingBagConfig]] = {}
        self.owner = owner
        self.names: list[str] = []
        self.std = options.std
        self.collection_of: dict[str, str] = {}
        self.extra: list[tuple[ExtraTable, str]] = []

        def add(held: Held, name: str, table: str, dim: int, features: list[str]) -> None:
            kind = EmbeddingConfig
            if held.lookup != "unpooled":
                kind = partial(EmbeddingBagConfig, pooling=PoolingType.SUM)
            tables.setdefault(held, []).append(
                kind(
                    name=name,
                    num_embeddings=schema.tables[table],
                    embedding_dim=dim,
                    feature_names=features,
                    data_type=DataType.FP32 if held.storage == "dense" else options.data_type,
                )
            )
            self.names.append(name)

        for table, dim in dims.items():
            name = f"{owner}__{table}"
            lookup: Lookup = "unpooled" if table in read_in_order else "pooled"
            held = Held(lookup, _storage(name, table, schema, options))
            if held.storage != "dense" and dim % _KERNEL_WIDTH:
                raise ValueError(
                    f"table {name} has embedding_dim {dim}, but a sharded table needs a multiple of "
                    f"{_KERNEL_WIDTH}; change it, or name the table in sharding.dense_tables"
                )
            features = [feature for feature, read in table_of.items() if read == table]
            add(held, name, table, dim, features)
            self.collection_of |= dict.fromkeys(features, held.name)
        for own in extra:
            name, table = f"{owner}__{own.feature}__extra", table_of[own.feature]
            held = Held("extra", _storage(name, table, schema, options))
            dim = own.dim if held.storage == "dense" else -(-own.dim // _KERNEL_WIDTH) * _KERNEL_WIDTH
            add(held, name, table, dim, [own.feature])
            self.extra.append((own, held.name))
        self.held = {held.name: held for held in sorted(tables, key=lambda held: held.name)}
        self.collections = nn.ModuleDict(
            {name: _collection(held, tables[held], options) for name, held in self.held.items()}
        )

    def forward(self, sparse: KeyedJaggedTensor) -> list[KeyedTensor | dict[str, JaggedTensor]]:
        """Output of each collection, in the order of `collections`."""
        return [
            # Managed ones return the rows they looked up as well.
            collection(sparse)[0] if self.held[name].storage == "managed" else collection(sparse)
            for name, collection in self.collections.items()
        ]


def _storage(name: str, table: str, schema: Schema, options: TableOptions) -> Storage:
    """Where a table called `name` in full and `table` in the schema is held."""
    dense = options.is_dense(name)
    if table not in (schema.managed_collision or ()):
        return "dense" if dense else "sharded"
    if complaint := managed_table_refused(name, schema.tables[table], dense=dense, lanes=options.buckets):
        raise ValueError(complaint)
    return "managed"


def _collection(held: Held, tables: Any, options: TableOptions) -> nn.Module:
    pooled, unpooled = EmbeddingBagCollection, EmbeddingCollection
    device = options.device
    if held.storage == "dense":
        pooled, unpooled = DenseEmbeddingBagCollection, DenseEmbeddingCollection
        device = options.dense_device
    cls = unpooled if held.lookup == "unpooled" else pooled
    collection = cls(tables=tables, device=device)
    return _managed(collection, tables, options) if held.storage == "managed" else collection


def _managed(collection: Any, tables: Any, options: TableOptions) -> nn.Module:
    """The collection behind a map from ids to rows for each table: TorchRec's multi-probe zero-collision hash."""
    maps: dict[str, Any] = {}
    for table in tables:
        table.init_fn = partial(nn.init.normal_, std=options.std)
        maps[table.name] = HashZchManagedCollisionModule(
            zch_size=table.num_embeddings,
            device=options.device,
            total_num_buckets=options.buckets,
            name=table.name,
            eviction_policy_name=HashZchEvictionPolicyName.LRU_EVICTION,
            eviction_config=HashZchEvictionConfig(features=[], single_ttl=_HOURS_KEPT),
        )
    managed = ManagedCollisionCollection(maps, tables)
    if isinstance(collection, EmbeddingCollection):
        return ManagedCollisionEmbeddingCollection(collection, managed)
    return ManagedCollisionEmbeddingBagCollection(collection, managed)


class InputAssembly(nn.Module):
    """Looked-up rows of some sets of tables -> `Inputs` of one component.

    Embeddings are taken by feature name, in the schema's order: the columns of a sharded `KeyedTensor` follow
    the plan. Means are made here, because TorchRec's depend on the plan: 1.8 divides those of a whole table twice
    if its collection has a row-split one too, and adds up partial ones under grid_shard. Features of pretrained
    vectors pass a Linear(size, d) of their own without bias, pooled histories after the pooling. A module of its
    own, so that the train pipeline does not trace it.

    Args:
        schema: features and tables.
        sources: the sets of tables looked up; the component's extra tables are in the first.
        cls: the component's class.
        config: its settings.

    Attributes:
        projections: the linear maps of the features of pretrained vectors, by `module_key`.
        extra_tables: the component's, in the order of `Inputs.extra`.
        shape: the sizes of what it makes.
    """

    def __init__(
        self, schema: Schema, sources: Sequence[Tables], cls: type[Component], config: ComponentConfig
    ) -> None:
        super().__init__()
        collections = [(source, name) for source in sources for name in source.collections]
        self._unpooled = {
            i for i, (source, name) in enumerate(collections) if source.held[name].lookup == "unpooled"
        }
        index = {
            feature: i
            for i, (source, name) in enumerate(collections)
            for feature, held_by in source.collection_of.items()
            if held_by == name
        }
        self.extra_tables = [table for table, _ in sources[0].extra]
        self._extra = [(table, collections.index((sources[0], name))) for table, name in sources[0].extra]
        self._single = {f.name for f in schema.of_kind("categorical")}
        tokens, histories = schema.of_kind("categorical", "multi_valued"), schema.of_kind("sequence")
        self._sequences = [(f.name, index[f.name]) for f in histories if cls.reads_sequences]
        self._tokens = [(f.name, index[f.name]) for f in tokens + ([] if cls.reads_sequences else histories)]
        self.projections = nn.ModuleDict(
            {
                module_key(f.name): linear(schema.pretrained[f.table], config.embedding_dim, bias=False)
                for f in schema.id_features
                if f.table in schema.pretrained
            }
        )
        self.shape = input_shape(schema, cls, config)

    def forward(self, looked_up: list[Any], counts: dict[str, Tensor], dense: Tensor) -> Inputs:
        """Outputs of all collections of the sources, in order, number of ids per feature `[B]`, dense `[B, m]`."""
        batch, d = dense.shape[0], self.shape.embedding_dim
        # All columns of a collection in one split, whose gradient is one concatenation: taken key by key, each would
        # have one of the collection's full width.
        looked_up = [rows if i in self._unpooled else rows.to_dict() for i, rows in enumerate(looked_up)]
        tokens = [
            self._project(name, self._mean(name, self._sum(name, i, looked_up[i]), counts))
            for name, i in self._tokens
        ]
        # By `get`, since a sharded EmbeddingCollection returns a lazy dict that has no `[]`.
        histories = [(name, looked_up[i].get(name)) for name, i in self._sequences]
        lengths = torch.zeros(batch, 0, dtype=torch.int64, device=dense.device)
        sequences = dense.new_zeros(batch, 0, 0, d)
        if histories:
            lengths = torch.stack([jagged.lengths().long() for _, jagged in histories], 1)
            # Padded to the longest of the batch, not of the data: most histories are short.
            longest = max(1, int(lengths.max()))
            sequences = torch.stack(
                [self._project(name, jagged.to_padded_dense(longest)) for name, jagged in histories], 1
            )
        extra = []
        for table, i in self._extra:
            total = looked_up[i][table.feature][:, : table.dim]
            extra.append(self._mean(table.feature, total, counts) if table.pooling == "mean" else total)
        return Inputs(
            tokens=torch.stack(tokens, 1) if tokens else dense.new_zeros(batch, 0, d),
            sequences=sequences,
            lengths=lengths,
            dense=dense,
            extra=torch.cat(extra, 1) if extra else dense.new_zeros(batch, 0),
        )

    def _project(self, name: str, vectors: Tensor) -> Tensor:
        key = module_key(name)
        return self.projections[key](vectors) if key in self.projections else vectors

    def _sum(self, name: str, index: int, looked_up: Any) -> Tensor:
        """The sum of each row's embeddings, `[B, size]`."""
        if index not in self._unpooled:
            pooled: Tensor = looked_up[name]
            return pooled
        jagged = looked_up.get(name)
        if name in self._single:
            return jagged.values()
        return torch.segment_reduce(jagged.values(), "sum", lengths=jagged.lengths().long())

    def _mean(self, name: str, total: Tensor, counts: dict[str, Tensor]) -> Tensor:
        return total if name in self._single else total / counts[name].clamp(min=1).unsqueeze(1)


@cache
def module_key(feature: str) -> str:
    """A feature's key in a ModuleDict, which takes none of its own attributes (`keys`, `type`) for one."""
    return f"{feature}:" if hasattr(nn.ModuleDict(), feature) else feature


def initial_rows(table: str, start: int, stop: int, dim: int, std: float, seed: int) -> Tensor:
    """Initial values of rows `[start, stop)` of a table, `[stop - start, dim]` float32 from N(0, std).

    A pure function of its arguments, drawn in blocks of rows: a shard can be filled without the rest of
    the table, so training starts equal under every plan and world size.
    """
    blocks = []
    for block in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
        digest = hashlib.sha256(f"{seed}/{table}/{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        values = torch.empty(BLOCK_ROWS, dim).normal_(0.0, std, generator=generator)
        first = block * BLOCK_ROWS
        blocks.append(values[max(start - first, 0) : stop - first])
    return torch.cat(blocks) if blocks else torch.empty(0, dim)
