"""A trained ensemble in plain PyTorch: ids in padded grids go in, probabilities come out. What is exported.

It needs nothing of torchrec or fbgemm when it runs: lookups, their sums and the components' inputs are made here by
operations of torch, and the components are the trained ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cetnet.models.cetnet import CETNet, Member
from cetnet.models.component import Inputs
from cetnet.models.embeddings import Tables, module_key
from cetnet.models.layers.sequences import beyond_end
from cetnet.models.schema import Feature, FeatureKind, Schema

NOTHING = -1
"""In a list: no value. Only at its end."""

_LARGEST_BLOCK = 1 << 28
"""Numbers that tables are joined up to: writing a block takes twice its memory again."""

Grid = Literal["categorical", "multi_valued", "sequences"]
_GRIDS: dict[FeatureKind, Grid] = {
    "categorical": "categorical",
    "multi_valued": "multi_valued",
    "sequence": "sequences",
}


def input_features(schema: Schema) -> dict[str, list[Feature]]:
    """The features of each input of `Served`, in the order of its inputs and of their columns."""
    features = {
        "dense": schema.dense_features,
        "categorical": schema.of_kind("categorical"),
        "multi_valued": schema.of_kind("multi_valued"),
        "sequences": schema.of_kind("sequence"),
    }
    return {name: columns for name, columns in features.items() if columns}


class Ids(NamedTuple):
    """Ids of one grid's features, all of them rows of their tables.

    Attributes:
        rows: `[B, n]` or, of lists, `[B, n, L]`, int64; 0 where the id was none of the table's.
        present: `[B, n, L]`, where there is a value; None if everywhere.
        counts: `[B, n]` int64, how many values; None if one each.
    """

    rows: Tensor
    present: Tensor | None = None
    counts: Tensor | None = None


class Rows(nn.Module):
    """Rows to be looked up, `[...]` int64 -> `[..., dim]` float32; the last one is zeros, for no value.

    Attributes:
        weight: `[rows + 1, width]` of which the first `dim` are read: float32, float16 or int8.
        scale: `[rows + 1, 1]` float16, what int8 is multiplied by; None for the others.
    """

    def __init__(self, weight: Tensor, dim: int, scale: Tensor | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = None if scale is None else nn.Parameter(scale, requires_grad=False)

    def forward(self, index: Tensor) -> Tensor:
        """`[...]` -> `[..., dim]`."""
        found = F.embedding(index, self.weight)
        if found.dtype != torch.float32:
            found = found.float()
        if self.scale is not None:
            found = found * F.embedding(index, self.scale).float()
        return found if self.dim == found.shape[-1] else found[..., : self.dim]


class TableGroup(nn.Module):
    """Tables of one owner and size, in one block of rows, and the features that look them up there.

    Args:
        rows: the block.
        first: of each feature, the first of its table's rows.
        grids: of each grid, its features, of which those in `first` are looked up here.
    """

    def __init__(self, rows: Rows, first: dict[str, int], grids: dict[Grid, list[Feature]]) -> None:
        super().__init__()
        self.rows, self.nothing = rows, rows.weight.shape[0] - 1
        self.columns: dict[Grid, list[int]] = {}
        self.features: dict[Grid, list[str]] = {}
        self._whole: dict[Grid, bool] = {}
        for grid, features in grids.items():
            columns = [i for i, feature in enumerate(features) if feature.name in first]
            if not columns:
                continue
            self.columns[grid] = columns
            self.features[grid] = [features[i].name for i in columns]
            self._whole[grid] = len(columns) == len(features)
            starts = torch.tensor([first[name] for name in self.features[grid]])
            self.register_buffer(f"first_{grid}", starts, persistent=False)
            self.register_buffer(f"columns_{grid}", torch.tensor(columns), persistent=False)

    def look_up(self, grid: Grid, ids: Ids) -> Tensor:
        """The vectors of this group's features of a grid: `[B, n, dim]`, of lists `[B, n, L, dim]`."""
        first: Tensor = getattr(self, f"first_{grid}")
        rows, present = self.of(grid, ids.rows), ids.present
        if present is None:
            return cast(Tensor, self.rows(rows + first))
        index = torch.where(self.of(grid, present), rows + first.unsqueeze(1), self.nothing)
        return cast(Tensor, self.rows(index))

    def of(self, grid: Grid, every: Tensor) -> Tensor:
        """The columns of this group's features, of those of all features of a grid, `[B, n, ...]`."""
        return every if self._whole[grid] else every.index_select(1, getattr(self, f"columns_{grid}"))

    def pooled(self, grid: Grid, ids: Ids, pooling: Literal["mean", "sum"]) -> Tensor:
        """A vector for each of this group's features of a grid, `[B, n, dim]`; zeros of an empty list."""
        found = self.look_up(grid, ids)
        if ids.counts is None:
            return found
        total = found.sum(2)
        return total if pooling == "sum" else total / self.of(grid, ids.counts).clamp(min=1).unsqueeze(2)


class ServedMember(nn.Module):
    """A component and the way from the ids to its inputs: what `InputAssembly` does with TorchRec's lookups."""

    def __init__(
        self, member: Member, schema: Schema, sources: Sequence[TableGroup], extra: Sequence[TableGroup]
    ) -> None:
        super().__init__()
        self.component = member.component
        self.projections = member.assembly.projections
        self.dim = member.assembly.shape.embedding_dim
        self.reads_sequences = member.component.reads_sequences
        self.sources, self.extra = nn.ModuleList(sources), nn.ModuleList(extra)
        tokens = schema.of_kind("categorical", "multi_valued")
        histories = schema.of_kind("sequence")
        self._tokens = [f.name for f in tokens + ([] if self.reads_sequences else histories)]
        self._sequences = [f.name for f in histories] if self.reads_sequences else []
        self._pooling = {table.feature: table.pooling for table in member.assembly.extra_tables}

    def forward(self, ids: dict[Grid, Ids], dense: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of every grid, dense `[B, m]` -> output embedding `[B, D]` and logit `[B]`."""
        batch = dense.shape[0]
        pooled: list[Tensor] = []
        order: list[str] = []
        for group in self._groups(self.sources):
            for grid, features in group.features.items():
                if grid == "sequences" and self.reads_sequences:
                    continue
                pooled.append(self._project(features, group.pooled(grid, ids[grid], "mean")))
                order += features
        lists, of_lists = [], []
        if self._sequences:
            for group in self._groups(self.sources):
                if "sequences" in group.features:
                    features = group.features["sequences"]
                    lists.append(self._project(features, group.look_up("sequences", ids["sequences"])))
                    of_lists += features
        counts = ids["sequences"].counts if self._sequences else None
        output = self.component(
            Inputs(
                tokens=_in_order(pooled, order, self._tokens)
                if pooled
                else dense.new_zeros(batch, 0, self.dim),
                sequences=_in_order(lists, of_lists, self._sequences)
                if lists
                else dense.new_zeros(batch, 0, 0, self.dim),
                lengths=torch.zeros(batch, 0, dtype=torch.int64) if counts is None else counts,
                dense=dense,
                extra=self._extras(ids) if self._pooling else dense.new_zeros(batch, 0),
            )
        )
        return output.embedding, output.logit

    def _extras(self, ids: dict[Grid, Ids]) -> Tensor:
        """`Inputs.extra`: what the extra tables give, side by side in their order."""
        found: dict[str, Tensor] = {}
        for group in self._groups(self.extra):
            for grid, features in group.features.items():
                for pooling in sorted({self._pooling[name] for name in features}):
                    vectors = group.pooled(grid, ids[grid], pooling)
                    if self._pooling == dict.fromkeys(features, pooling) and features == list(self._pooling):
                        return vectors.flatten(1)
                    for i, name in enumerate(features):
                        if self._pooling[name] == pooling:
                            found[name] = vectors[:, i]
        return torch.cat([found[name] for name in self._pooling], dim=1)

    def _project(self, features: list[str], vectors: Tensor) -> Tensor:
        """Vectors `[B, n, ..., size]` of features, those of pretrained tables mapped to the component's size."""
        keys = [module_key(name) for name in features]
        if keys[0] not in self.projections:
            return vectors
        return torch.stack([self.projections[key](vectors[:, i]) for i, key in enumerate(keys)], dim=1)

    @staticmethod
    def _groups(modules: nn.ModuleList) -> Iterable[TableGroup]:
        return (cast(TableGroup, module) for module in modules)


class Served(nn.Module):
    """A trained CETNet on a CPU as it is served.

    The tables of a set that have one size become one block, so that one lookup serves all their features, and the
    model's own tables become views of it: what is loaded into the model afterwards is in both, and memory holds it
    once. Tables on `meta` get memory here.

    Args:
        model: the model, on the CPU but for tables on `meta`, computing in float32.
        schema: its features and tables.

    Attributes:
        input_names: which of `dense`, `categorical`, `multi_valued`, `sequences` there are, in that order.
        outputs: names of the outputs, those of the model.

    Raises:
        ValueError: a table has managed collision, whose map from ids to rows needs a GPU.
    """

    def __init__(self, model: CETNet, schema: Schema) -> None:
        super().__init__()
        if schema.managed_collision:
            raise ValueError(
                f"table {schema.managed_collision[0]!r} has managed collision, whose map from ids to rows TorchRec "
                "computes on a GPU only, so no CPU can serve it; train with `hashed` tables instead"
            )
        self.outputs = list(model.outputs)
        features = input_features(schema)
        self.input_names = tuple(features)
        self._grids: dict[Grid, list[Feature]] = {
            _GRIDS[columns[0].kind]: columns for name, columns in features.items() if name != "dense"
        }
        for grid, columns in self._grids.items():
            rows = torch.tensor([schema.tables[str(feature.table)] for feature in columns])
            self.register_buffer(f"rows_{grid}", rows, persistent=False)
        groups = {
            owner: _groups(cast(Tables, tables), schema, self._grids)
            for owner, tables in model.tables.items()
        }
        self.groups = nn.ModuleDict(
            {
                f"{owner}_{kind}_{i}": group
                for owner, of_owner in groups.items()
                for kind, of_kind in of_owner._asdict().items()
                for i, group in enumerate(of_kind)
            }
        )
        self.members = nn.ModuleDict(
            {
                name: ServedMember(
                    cast(Member, member),
                    schema,
                    [group for source in model.sources[name] for group in groups[source].embeddings],
                    groups[name].extra,
                )
                for name, member in model.towers.items()
            }
        )
        self.fusion = model.objective.fusion
        self.eval().requires_grad_(False)

    def forward(
        self,
        dense: Tensor | None = None,
        categorical: Tensor | None = None,
        multi_valued: Tensor | None = None,
        sequences: Tensor | None = None,
    ) -> Tensor:
        """Probabilities of B >= 1 rows, `[outputs, B]` float32.

        Args:
            dense: `[B, m]` float32.
            categorical: `[B, c]` int64.
            multi_valued: `[B, q, S]` int64, S >= 1; -1 where a list has ended.
            sequences: `[B, k, T]` int64, 1 <= T <= the longest `max_length`, oldest first; -1 where one has ended.

        Any other id that its table doesn't have is read as row 0. An input is there if the schema has such features.
        """
        grids: dict[Grid, Tensor | None] = {
            "categorical": categorical,
            "multi_valued": multi_valued,
            "sequences": sequences,
        }
        ids = {grid: self._checked(grid, tensor) for grid, tensor in grids.items() if tensor is not None}
        if dense is None:
            some = next(tensor for tensor in grids.values() if tensor is not None)
            dense = torch.zeros(some.shape[0], 0)
        embeddings, logits = zip(*(member(ids, dense) for member in self.members.values()), strict=True)
        logit = torch.stack([each.float() for each in logits])  # [N, B]
        if self.fusion is not None:
            fused = self.fusion(list(embeddings), logit.T)
            logit = torch.cat([fused[None], logit])[: len(self.outputs)]
        return logit.sigmoid()

    def _checked(self, grid: Grid, ids: Tensor) -> Ids:
        """Ids that are rows of their tables, whatever numbers came in."""
        rows: Tensor = getattr(self, f"rows_{grid}")
        if grid == "categorical":
            return Ids(torch.where((ids >= 0) & (ids < rows), ids, 0))
        present = ids != NOTHING
        known = torch.where((ids >= 0) & (ids < rows.unsqueeze(1)), ids, 0)
        return Ids(known, present, present.sum(2))


class _Groups(NamedTuple):
    """The groups of a set of tables."""

    embeddings: list[TableGroup]
    extra: list[TableGroup]


def _groups(tables: Tables, schema: Schema, grids: dict[Grid, list[Feature]]) -> _Groups:
    """The tables of a set by their size, its extra tables apart; in several groups where they are large."""
    holders = _holders(tables)
    extra = {f"{tables.owner}__{table.feature}__extra": table for table, _ in tables.extra}
    alike: dict[tuple[bool, int, int], list[list[str]]] = {}
    for name in tables.names:
        rows, width = holders[name].weight.shape  # of sharded extra tables wider than is read
        groups = alike.setdefault((name in extra, extra[name].dim if name in extra else width, width), [])
        if (
            not groups
            or sum(holders[each].weight.numel() for each in groups[-1]) + rows * width > _LARGEST_BLOCK
        ):
            groups.append([])
        groups[-1].append(name)
    found = _Groups([], [])
    for is_extra, dim, names in ((*of[:2], names) for of, groups in alike.items() for names in groups):
        block, starts = _joined(holders, names)
        first = (
            {extra[name].feature: start for name, start in starts.items()}
            if is_extra
            else {
                feature.name: starts[f"{tables.owner}__{feature.table}"]
                for feature in schema.id_features
                if f"{tables.owner}__{feature.table}" in starts
            }
        )
        group = TableGroup(Rows(block, dim), first, grids)
        (found.extra if is_extra else found.embeddings).append(group)
    return found


def _holders(tables: Tables) -> dict[str, Any]:
    """The modules that hold the tables of a set, by the tables' names."""
    holders: dict[str, Any] = {}
    for collection in tables.collections.values():
        held = collection.embeddings if hasattr(collection, "embeddings") else collection.embedding_bags
        holders |= dict(cast(nn.ModuleDict, held).items())
    return holders


def _joined(holders: dict[str, Any], names: list[str]) -> tuple[Tensor, dict[str, int]]:
    """Put tables into one block, with a row of zeros at its end, and say where each starts."""
    sizes = [holders[name].weight.shape for name in names]
    block = torch.zeros(sum(rows for rows, _ in sizes) + 1, sizes[0][1])
    starts, start = {}, 0
    for name, (rows, _) in zip(names, sizes, strict=True):
        weight, part = holders[name].weight, block[start : start + rows]
        if not weight.is_meta:
            part.copy_(weight.detach())
        holders[name].weight = nn.Parameter(part, requires_grad=False)
        starts[name], start = start, start + rows
    return block, starts


def _in_order(blocks: list[Tensor], names: list[str], wanted: list[str]) -> Tensor:
    """Blocks `[B, n, ...]` of the features `names`, joined, in the order of `wanted`."""
    joined = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    if names == wanted:
        return joined
    return joined.index_select(1, torch.tensor([names.index(name) for name in wanted]))


def inputs_of(schema: Schema, sparse: KeyedJaggedTensor, dense: Tensor) -> dict[str, Tensor]:
    """The inputs of `Served` from those of `CETNet`; lists are padded to the longest of the batch, at least one."""
    features = input_features(schema)
    found = {"dense": dense} if "dense" in features else {}
    by_name = sparse.to_dict()
    for name, columns in features.items():
        if name == "dense":
            continue
        lists = [by_name[feature.name] for feature in columns]
        if name == "categorical":
            found[name] = torch.stack([each.values() for each in lists], dim=1)
            continue
        lengths = torch.stack([each.lengths() for each in lists], dim=1)
        grid = lengths.new_full((*lengths.shape, max(1, int(lengths.max()))), NOTHING, dtype=torch.int64)
        for i, each in enumerate(lists):
            grid[:, i][~beyond_end(each.lengths(), grid.shape[2])] = each.values()
        found[name] = grid
    return found


def batch_of(schema: Schema, inputs: Mapping[str, Tensor]) -> tuple[KeyedJaggedTensor, Tensor]:
    """Ids and dense features as `CETNet` reads them, of inputs of `Served` whose ids are rows of their tables."""
    columns = {
        feature.name: inputs[name][:, i]
        for name, features in input_features(schema).items()
        for i, feature in enumerate(features)
        if name != "dense"
    }
    ids = [columns[feature.name] for feature in schema.id_features]
    ids = [each.unsqueeze(1) if each.dim() == 1 else each for each in ids]
    present = [each != NOTHING for each in ids]
    sparse = KeyedJaggedTensor(
        [feature.name for feature in schema.id_features],
        torch.cat([each[there] for each, there in zip(ids, present, strict=True)]),
        lengths=torch.cat([there.sum(1) for there in present]).int(),
    )
    return sparse, inputs["dense"] if "dense" in inputs else torch.zeros(len(ids[0]), 0)
