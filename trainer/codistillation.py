"""Codistillation (Anil et al., arXiv 1804.03235): components learn from what stale copies of their peers say.

No copy is kept. What a copy made now would say of the batches to come, when they come, the component says now: every
k steps the model scores the next k batches before it trains on them.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
import torch.distributed as dist

from cetnet.models.batch import Batch
from cetnet.models.config import Codistillation
from cetnet.trainer.config import RunConfig
from cetnet.trainer.optimizers import set_fused_step
from cetnet.trainer.processes.distributed import Processes
from cetnet.trainer.session import Session, run_pipeline


def taught_by_peers(
    session: Session, batches: Iterable[Batch], step: int, config: RunConfig, processes: Processes
) -> Iterator[Iterable[Batch]]:
    """The batches from a step on, in parts to be trained on one after the other; every rank calls it.

    Without codistillation all of them are one part. With it a part is what one copy sees, and its batches have
    `peers`. Where batches end, at an evaluation or the end of an epoch, a part does, too. One that a run is resumed
    in has what was said of it before.
    """
    collaboration = config.model.collaboration
    stale = session.model.module.stale
    if not isinstance(collaboration, Codistillation) or stale is None:
        yield batches
        return
    every, first = collaboration.every_steps, collaboration.warm_up_steps
    left = iter(batches)
    while part := list(islice(left, every - (step - first) % every)):
        if first <= step < int(stale.until):
            for batch in part:
                batch.peers = stale.of(batch.row)
        elif first <= step:
            with processes.hang_detector.while_doing("predicting what comes next"):
                predicted = _predict(session, part, processes)
            rows = torch.cat([batch.row for batch in part])
            stale.keep(_gathered(rows, processes), _gathered(predicted, processes), until=step + len(part))
            set_fused_step(session.model, step)  # which takes lookups for steps
        yield part
        step += len(part)


@torch.no_grad()
def _predict(session: Session, part: list[Batch], processes: Processes) -> torch.Tensor:
    """Have every batch know what the components say of it now; returns it of all, `[rows, N]`."""
    session.model.eval()
    said = []
    for batch, predictions in zip(part, run_pipeline(session, part), strict=True):
        batch.peers = predictions.logits[1:].T.cpu().contiguous()  # the first is the fused
        said.append(batch.peers)
        processes.hang_detector.progressed()
    session.model.train()
    return torch.cat(said)


def _gathered(local: torch.Tensor, processes: Processes) -> torch.Tensor:
    """Of all ranks, one after the other."""
    parts = [torch.empty_like(local) for _ in range(processes.world_size)]
    dist.all_gather(parts, local, group=processes.cpu_group)
    return torch.cat(parts)
