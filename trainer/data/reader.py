"""The exactly-once reader: Parquet row groups -> `Batch`es.

Every row comes exactly once per epoch, in an order fixed by the data, the seed and the global batch
size: not by the number of ranks. The epoch is cut into `lanes`, equal and contiguous shares of the
shuffled row groups. A global batch takes the same number of rows from every lane, and rank r of W reads
lanes `[r L / W, (r + 1) L / W)`. A lane's stream is a pure function of the seed, so the whole state of
the reader is the step.
"""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, cycle, groupby, islice
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from cetnet.models.batch import Batch
from cetnet.models.rules import indivisible
from cetnet.models.schema import Schema
from cetnet.trainer.config import DataConfig
from cetnet.trainer.data.bad_rows import BadRow
from cetnet.trainer.data.dataset import Dataset, Piece
from cetnet.trainer.data.decoded import Rows, zeros
from cetnet.trainer.errors import UserError

Order = Literal["shuffled", "sequential", "partitioned"]


@dataclass(frozen=True)
class _Chunk:
    """Pieces that are decoded, and shuffled if there is a seed, together."""

    pieces: list[Piece]
    seed: tuple[int, ...] | None

    @property
    def num_rows(self) -> int:
        return sum(piece.stop - piece.start for piece in self.pieces)


class _Stream:
    """Rows of a list of chunks by position, read forwards; the chunk after the current one is prefetched."""

    def __init__(self, dataset: Dataset, chunks: list[_Chunk], decoders: ThreadPoolExecutor) -> None:
        self._dataset, self._chunks, self._decoders = dataset, chunks, decoders
        self._ends = np.cumsum([chunk.num_rows for chunk in chunks]).tolist()
        self._decoded: dict[int, Future[Rows]] = {}

    def read(self, start: int, stop: int) -> list[Rows]:
        """Slices that make up positions `[start, stop)`, cut at the end of the stream."""
        slices = []
        for index in range(bisect_right(self._ends, start), len(self._chunks)):
            end = self._ends[index]
            first = end - self._chunks[index].num_rows
            if stop <= first:
                break
            slices.append(self._chunk(index).slice(max(start - first, 0), min(stop, end) - first))
        return slices

    def prefetch(self, position: int) -> None:
        """Have the chunk of a position decoded."""
        self._submit(bisect_right(self._ends, position))

    def _submit(self, index: int) -> None:
        if index < len(self._chunks) and index not in self._decoded:
            self._decoded[index] = self._decoders.submit(self._decode, self._chunks[index])

    def _chunk(self, index: int) -> Rows:
        if index + 1 not in self._decoded:  # the first read of this chunk
            self._decoded = {i: future for i, future in self._decoded.items() if i >= index}
            self._submit(index)
            self._submit(index + 1)
        return self._decoded[index].result()

    def _decode(self, chunk: _Chunk) -> Rows:
        shuffle = None
        if chunk.seed is not None:
            shuffle = np.random.default_rng(chunk.seed).permutation(chunk.num_rows)
        return self._dataset.read(chunk.pieces, shuffle)


class Reader:
    """Streams one rank's share of a split.

    Args:
        dataset: the split.
        batch_size: rows per step over all ranks.
        order: `shuffled` (row groups, then rows within chunks of each lane); `sequential` (the order of
            the files, so that training on a time-ordered log never sees the future; every rank decodes
            every row group it needs a row of); `partitioned` (the order of the files, one contiguous
            part a rank: for evaluation).
        lanes: number of lanes of the shuffled order: a multiple of every world size that will be used.
        shuffle_rows: rows of a lane that are shuffled together, at least (whole row groups): a chunk. A process
            holds up to two chunks for each of its lanes.
        seed: fixes the shuffled order, together with the epoch.
        prefetch: batches assembled ahead of the training step.
        threads: threads that decode.
        rank: this process's rank.
        world_size: number of processes.
        teachers: of each teacher, its logits by row number, `[num_rows]` float32.

    Attributes:
        bad_rows: by step of the epoch, the rows that are skipped in this rank's batch: for who trains it to take out.

    Raises:
        UserError: the world size does not divide the lanes, or the lanes the batch size.
    """

    @classmethod
    def of(
        cls,
        config: DataConfig,
        dataset: Dataset,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        teachers: Sequence[NDArray[np.float32]] = (),
    ) -> "Reader":
        """The reader of `data.*` of an experiment file: how training reads its split."""
        return cls(
            dataset,
            config.batch_size,
            order=config.order,
            lanes=config.lanes,
            shuffle_rows=config.shuffle_rows,
            seed=seed,
            prefetch=config.prefetch,
            threads=config.threads,
            rank=rank,
            world_size=world_size,
            teachers=teachers,
        )

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        order: Order = "shuffled",
        lanes: int = 16,
        shuffle_rows: int = 65_536,
        seed: int = 0,
        prefetch: int = 4,
        threads: int = 2,
        rank: int = 0,
        world_size: int = 1,
        teachers: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        if complaint := indivisible(
            batch_size=batch_size, lanes=lanes if order == "shuffled" else None, world_size=world_size
        ):
            raise UserError(complaint)
        self.dataset, self.batch_size, self.order, self.seed = dataset, batch_size, order, seed
        self._lanes = lanes if order == "shuffled" else world_size
        self._shuffle_rows, self._prefetch, self._threads = shuffle_rows, prefetch, threads
        self._rank, self._world_size, self._teachers = rank, world_size, teachers
        self.bad_rows: dict[int, list[BadRow]] = {}
        lane_rows = batch_size // self._lanes
        # Lanes differ by one row at most, so counting by the longest lane equals counting by rows.
        self.steps_per_epoch = math.ceil(math.ceil(dataset.num_rows / self._lanes) / lane_rows)

    def batches(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches of steps `[start, stop)` of an epoch, decoded and assembled in background threads.

        Raises:
            UserError: bad data, see `Dataset.read`.
        """
        stop = self.steps_per_epoch if stop is None else stop
        assembler, decoders = ThreadPoolExecutor(1, "assemble"), ThreadPoolExecutor(self._threads, "decode")
        try:
            plan = self._plan(epoch, decoders)
            # So that the first batch waits for a chunk of each, and for no second one.
            for stream, offset, stride, _ in plan:
                stream.prefetch(offset + start * stride)
            pending: deque[Future[Batch]] = deque()
            for step in range(start, stop):
                pending.append(assembler.submit(self._assemble, plan, step))
                if len(pending) > self._prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            assembler.shutdown(cancel_futures=True)
            decoders.shutdown(cancel_futures=True)

    def _plan(self, epoch: int, decoders: ThreadPoolExecutor) -> list[tuple[_Stream, int, int, int]]:
        """Streams of this rank, each with `(offset, stride, count)`: step s takes `count` rows from
        `offset + s * stride` on.
        """
        groups = self.dataset.row_groups
        local = self.batch_size // self._world_size
        if self.order == "sequential":
            chunks = [_Chunk([Piece(group, 0, group.num_rows)], None) for group in groups]
            return [(_Stream(self.dataset, chunks, decoders), self._rank * local, self.batch_size, local)]
        shuffled = self.order == "shuffled"
        if shuffled:
            permutation = np.random.default_rng((self.seed, epoch)).permutation(len(groups))
            groups = [groups[i] for i in permutation]
        own = self._lanes // self._world_size
        count = local // own
        plan = []
        for lane in range(self._rank * own, (self._rank + 1) * own):
            rows = [self.dataset.num_rows * i // self._lanes for i in (lane, lane + 1)]
            pieces = _cut([Piece(group, 0, group.num_rows) for group in groups], *rows)
            seed = (self.seed, epoch, lane) if shuffled else None
            chunks = _chunked(pieces, self._shuffle_rows if shuffled else 1, seed)
            plan.append((_Stream(self.dataset, chunks, decoders), 0, count, count))
        return plan

    def _assemble(self, plan: list[tuple[_Stream, int, int, int]], step: int) -> Batch:
        slices: list[Rows] = []
        for stream, offset, stride, count in plan:
            start = offset + step * stride
            slices += stream.read(start, start + count)
        if bad := [row for rows in slices for row in rows.bad.values()]:
            self.bad_rows[step] = bad
        batch = _to_batch(self.dataset.schema, slices, self.batch_size // self._world_size)
        if self._teachers:
            batch.teachers = _logits_of(self._teachers, batch.row)
        return batch


def _logits_of(teachers: Sequence[NDArray[np.float32]], row: torch.Tensor) -> torch.Tensor:
    """Their logits for rows `[B]`, `[B, teachers]`; 0 for padding and bad rows, which have none."""
    known = row.clamp(min=0).numpy()
    logits = torch.from_numpy(np.stack([logits[known] for logits in teachers], axis=1))
    return torch.where(row.unsqueeze(1) >= 0, logits, 0)


def _cut(pieces: list[Piece], start: int, stop: int) -> list[Piece]:
    """Rows `[start, stop)` of the concatenated pieces."""
    result, first = [], 0
    for piece in pieces:
        end = first + piece.stop - piece.start
        if end > start and first < stop:
            result.append(
                Piece(
                    piece.row_group,
                    piece.start + max(start - first, 0),
                    piece.stop - max(end - stop, 0),
                )
            )
        first = end
    return result


def _chunked(pieces: list[Piece], min_rows: int, seed: tuple[int, ...] | None) -> list[_Chunk]:
    """Consecutive pieces in chunks of at least `min_rows` rows; each chunk gets a seed of its own."""
    chunks: list[_Chunk] = []
    current: list[Piece] = []
    for i, piece in enumerate(pieces):
        current.append(piece)
        if sum(p.stop - p.start for p in current) >= min_rows or i == len(pieces) - 1:
            chunks.append(_Chunk(current, None if seed is None else (*seed, len(chunks))))
            current = []
    return chunks


def _to_batch(schema: Schema, slices: list[Rows], batch_size: int) -> Batch:
    """Join slices of decoded rows, padded to `batch_size` with rows of weight 0.

    The padding repeats rows of the batch, so that BatchNorm sees nothing it doesn't see elsewhere; where
    this rank has no row left at all, it is made of zeros.
    """
    num_rows = sum(len(rows.row) for rows in slices)
    parts = _repeated(slices, batch_size) if num_rows else [zeros(schema, batch_size)]
    row = np.concatenate([rows.row for rows in parts])
    numbers = np.concatenate([rows.numbers for rows in parts], axis=1)
    block = np.concatenate([rows.ids for rows in parts], axis=1)
    row[num_rows:], numbers[1, num_rows:] = -1, 0
    # Features that follow each other in the schema and are categorical are one block.
    ids: list[NDArray] = []
    lengths: list[NDArray] = []
    first, lists = 0, iter(zip(*(rows.lists for rows in parts), strict=True))
    for categorical, group in groupby(schema.id_features, lambda feature: feature.kind == "categorical"):
        features = list(group)
        if categorical:
            last = first + len(features)
            ids.append(block[first:last].reshape(-1))
            lengths.append(np.ones(len(features) * batch_size, np.int32))
            first = last
        else:
            for one in chain(*islice(lists, len(features))):
                ids.append(one.ids)
                lengths.append(np.diff(one.offsets))
    return Batch(
        sparse=KeyedJaggedTensor(
            keys=[feature.name for feature in schema.id_features],
            values=torch.from_numpy(np.concatenate(ids, dtype=np.int64)),
            lengths=torch.from_numpy(np.concatenate(lengths, dtype=np.int32)),
        ),
        dense=torch.from_numpy(np.ascontiguousarray(numbers[2:].T)),
        label=torch.from_numpy(numbers[0]),
        weight=torch.from_numpy(numbers[1]),
        row=torch.from_numpy(row),
    )


def _repeated(slices: list[Rows], count: int) -> list[Rows]:
    """The slices, over and over, cut at `count` rows."""
    result = []
    for rows in cycle(slices):
        if count <= 0:
            break
        result.append(rows.slice(0, count) if count < len(rows.row) else rows)
        count -= len(rows.row)
    return result
