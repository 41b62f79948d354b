"""What keeps planning short for many tables and large clusters: fewer estimates, fewer proposals."""

from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.proposers import Proposer
from torchrec.distributed.planner.types import ShardingOption


class OneOfEachSize(EmbeddingEnumerator):
    """Estimates one shard of each size: a row-wise table has as many as there are ranks, and nearly all alike."""

    def populate_estimates(self, sharding_options: list[ShardingOption]) -> None:
        """Fill in storage and time of every shard."""
        every = [option.shards for option in sharding_options]
        for option in sharding_options:
            option.shards = list({tuple(shard.size): shard for shard in option.shards}.values())
        super().populate_estimates(sharding_options)
        for option, shards in zip(sharding_options, every, strict=True):
            estimated = {tuple(shard.size): shard for shard in option.shards}
            option.shards = shards
            for shard in shards:
                like = estimated[tuple(shard.size)]
                shard.storage, shard.perf = like.storage, like.perf


class SplitLargest(Proposer):
    """Splits the k tables that are largest, or slowest, when whole, for growing k; the others stay whole.

    A few dozen proposals whatever the number of tables. TorchRec's GreedyProposer makes one for every option of
    every table, each as long as the list of shards.
    """

    def load(
        self,
        search_space: list[ShardingOption],
        enumerator: EmbeddingEnumerator | None = None,  # noqa: ARG002
    ) -> None:
        """Take the options and lay out the proposals."""
        options: dict[str, list[ShardingOption]] = {}
        for option in search_space:
            options.setdefault(option.fqn, []).append(option)
        self._proposals: list[list[ShardingOption]] = []
        kernels = sorted({option.compute_kernel for option in search_space})
        for kernel in kernels if len(kernels) > 1 else [None]:
            self._lay_out(
                {
                    fqn: [o for o in known if kernel in (None, o.compute_kernel)] or known
                    for fqn, known in options.items()
                }
            )
        self._index = 0

    def _lay_out(self, options: dict[str, list[ShardingOption]]) -> None:
        whole = {
            fqn: min(
                (o for o in known if o.num_shards == 1),
                key=slowest_shard,
                default=min(known, key=slowest_shard),
            )
            for fqn, known in options.items()
        }
        types = sorted({o.sharding_type for known in options.values() for o in known if o.num_shards > 1})
        orders = (
            (lambda fqn: whole[fqn].total_storage.hbm + whole[fqn].total_storage.ddr),
            (lambda fqn: slowest_shard(whole[fqn])),
        )
        for order in orders:
            splittable = sorted((fqn for fqn in options if len(options[fqn]) > 1), key=order, reverse=True)
            counts = [0]
            while counts[-1] < len(splittable):
                counts.append(min(len(splittable), max(counts[-1] + 1, counts[-1] * 3 // 2)))
            for wanted in [*types, None]:
                split = {}
                for fqn in splittable:
                    ways = [o for o in options[fqn] if o.num_shards > 1 and wanted in (None, o.sharding_type)]
                    split[fqn] = min(ways, key=slowest_shard, default=whole[fqn])
                for count in counts:
                    chosen = {fqn: split[fqn] for fqn in splittable[:count]}
                    self._proposals.append([chosen.get(fqn, whole[fqn]) for fqn in options])

    def propose(self) -> list[ShardingOption] | None:
        """The next proposal."""
        return self._proposals[self._index] if self._index < len(self._proposals) else None

    def feedback(
        self,
        partitionable: bool,  # noqa: ARG002
        plan: list[ShardingOption] | None = None,  # noqa: ARG002
        perf_rating: float | None = None,  # noqa: ARG002
        storage_constraint: Topology | None = None,  # noqa: ARG002
    ) -> None:
        """Go on, whatever came of it."""
        self._index += 1


def slowest_shard(option: ShardingOption) -> float:
    """Milliseconds a step of an option's slowest shard (planner's estimate)."""
    return max(float(shard.perf.total) for shard in option.shards)
