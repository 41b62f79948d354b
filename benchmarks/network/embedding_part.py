"""What the planner's estimate is about, timed alone: lookups, their exchange, the gradients' and the update.

Run by `benchmarks/network` on every host, under torchrun. Not in it, as they are not in the estimate: the exchange of
ids, dense layers, DDP's all-reduce of their gradients, losses, metrics, reading.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from cetnet.trainer.config import load_config
from cetnet.trainer.console import quieten
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.session import build_session


def main(jobs: Path) -> None:
    """Time each of `jobs` (JSON: configuration, steps, warm_up, name -> overrides); results go to its `out`."""
    settings = json.loads(jobs.read_text(encoding="utf-8"))
    results = {}
    with process_group("cpu") as processes:
        for name, overrides in settings["variants"].items():
            results[name] = _measure(
                processes, Path(settings["config"]), overrides, settings["warm_up"], settings["steps"]
            )
        if processes.is_main:
            Path(settings["out"]).write_text(json.dumps(results), encoding="utf-8")


def _measure(processes: Processes, path: Path, overrides: list[str], warm_up: int, steps: int) -> dict:
    """Median seconds of the slowest rank, and how many tables the plan has of each sharding type."""
    config = load_config(path, overrides)
    dataset = Dataset(config.data.path, config.data.split)
    session = build_session(config, dataset.schema, processes)
    modules = [m for m in session.model.modules() if isinstance(m, ShardedEmbeddingBagCollection)]
    reader = Reader.of(config.data, dataset, rank=processes.rank, world_size=processes.world_size)
    seconds = []
    for batch in reader.batches(0, 0, warm_up + steps):
        inputs = []
        for module in modules:
            context = module.create_context()
            inputs.append((module, context, module.input_dist(context, batch.sparse).wait().wait()))
        dist.barrier()
        start = time.perf_counter()
        looked_up = [
            module.compute_and_output_dist(context, features) for module, context, features in inputs
        ]
        values = [rows.wait().values() for rows in looked_up]
        torch.autograd.backward(values, [torch.full_like(value, 1e-4) for value in values])
        slowest = torch.tensor(time.perf_counter() - start)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        seconds.append(float(slowest))
    return {
        "seconds": median(seconds[warm_up:]),
        "tables": {placement.table: placement.sharding_type for placement in session.plan.placements},
        "types": dict(Counter(placement.sharding_type for placement in session.plan.placements)),
    }


if __name__ == "__main__":
    quieten()
    main(Path(sys.argv[1]))
