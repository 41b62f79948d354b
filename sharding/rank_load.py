"""What a plan means for the ranks: memory and time, as the planner estimates them."""

from dataclasses import dataclass

from cetnet.sharding.planner import Phases, Plan


@dataclass(frozen=True)
class Load:
    """Estimates of a plan, one number per rank in each list.

    Attributes:
        weights: bytes of table rows on the GPU (on CPU ranks: in host memory).
        optimizer: bytes of the fused optimizer's state.
        buffers: bytes of ids and looked-up rows under way, and of caches.
        host: bytes of tables that are kept in host memory.
        phases: milliseconds a step.
    """

    weights: list[int]
    optimizer: list[int]
    buffers: list[int]
    host: list[int]
    phases: list[Phases]

    @property
    def memory(self) -> list[int]:
        """Bytes on each GPU."""
        return [sum(parts) for parts in zip(self.weights, self.optimizer, self.buffers, strict=True)]

    @property
    def slowest(self) -> Phases:
        """The slowest rank's time in each phase: in every exchange all wait for it."""
        return Phases(*(max(phase) for phase in zip(*self.phases, strict=True)))

    @property
    def time_imbalance(self) -> float:
        """The slowest rank's time over the mean."""
        return _over_mean([sum(phases) for phases in self.phases])

    @property
    def memory_imbalance(self) -> float:
        """The fullest rank's memory over the mean."""
        return _over_mean(self.memory)


def sum_by_rank(plan: Plan, world_size: int) -> Load:
    """Add up a plan's shards by rank."""
    sums = {key: [0] * world_size for key in ("weights", "optimizer", "buffers", "host")}
    times = [[0.0] * len(Phases._fields) for _ in range(world_size)]
    for table in plan.placements:
        shards = zip(
            table.ranks, table.bytes, table.weights, table.optimizer, table.host, table.phases, strict=True
        )
        for rank, size, weights, optimizer, host, phases in shards:
            if host:  # rows and state are on the host; the GPU holds the cache
                weights = optimizer = 0
            sums["weights"][rank] += weights
            sums["optimizer"][rank] += optimizer
            sums["buffers"][rank] += size - host - weights - optimizer
            sums["host"][rank] += host
            times[rank] = [a + b for a, b in zip(times[rank], phases, strict=True)]
    return Load(**sums, phases=[Phases(*phases) for phases in times])


def _over_mean(values: list[int] | list[float]) -> float:
    return max(values) * len(values) / sum(values) if sum(values) else 1.0
