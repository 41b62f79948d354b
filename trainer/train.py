"""The training loop: every batch is scored before it is learned from, and comes once an epoch."""

import math
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from resource import RUSAGE_SELF, getrusage
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from cetnet.sharding.plan_table import plan_table
from cetnet.trainer.agreement import Agreement
from cetnet.trainer.base_rate import start_at_base_rate
from cetnet.trainer.check_run import CheckedRun
from cetnet.trainer.checkpoint.checkpoints import (
    Checkpoints,
    load_checkpoint,
    open_checkpoints,
    read_trainer_state,
    verify_checkpoint,
)
from cetnet.trainer.checkpoint.object_path import Place
from cetnet.trainer.checkpoint.store import folders_of
from cetnet.trainer.checkpoint.trainer_state import TrainState, read_train_state, trainer_state
from cetnet.trainer.clock import Clock, TimedBatches
from cetnet.trainer.codistillation import taught_by_peers
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import TrainingProgress, console
from cetnet.trainer.data.bad_rows import BadRow
from cetnet.trainer.data.dataset import Dataset
from cetnet.trainer.data.quarantine import Quarantine
from cetnet.trainer.data.reader import Reader
from cetnet.trainer.data.statistics import only_value
from cetnet.trainer.divergence import Divergence
from cetnet.trainer.draws import seed_draws
from cetnet.trainer.early_stopping import take_in
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import disk_errors, written_aside
from cetnet.trainer.nonfinite import FaultPolicy, check_parameters
from cetnet.trainer.optimizers import set_fused_step
from cetnet.trainer.processes.distributed import Processes, on_every_rank
from cetnet.trainer.processes.hang_detector import LOADING, MEASURING, SAVING, TRAINING
from cetnet.trainer.processes.signals import StopSignals
from cetnet.trainer.progressive_ne import ProgressiveNE
from cetnet.trainer.remarks import describe, nothing_learned
from cetnet.trainer.run_folder import check_free, locked_run
from cetnet.trainer.run_writer import RunWriter
from cetnet.trainer.schedule import LearningRate
from cetnet.trainer.scoring import score
from cetnet.trainer.session import Session, build_session, load_pretrained, run_pipeline
from cetnet.trainer.teachers import taught_reader


@dataclass
class Trainer:
    """A run under way, the same on every rank."""

    config: RunConfig
    processes: Processes
    session: Session
    reader: Reader
    ne: ProgressiveNE
    lr: LearningRate
    checkpoints: Checkpoints
    signals: StopSignals
    agreement: Agreement
    faults: FaultPolicy
    divergence: Divergence
    quarantine: Quarantine
    writer: RunWriter | None
    display: TrainingProgress
    total_steps: int
    pause_at: int | None
    state: TrainState = field(default_factory=TrainState)
    said: set[str] = field(default_factory=set)
    saved: TrainState | None = None  # as the newest `step-*` has it


def train(run: CheckedRun, processes: Processes) -> dict[str, Any] | None:
    """Train a model; returns the final metrics on rank 0.

    Raises:
        UserError: bad data, no plan, or a run folder that can't be used.
        SystemExit: a checkpoint is written, and the run ends before its end: a rank was told to stop (SIGTERM,
            SIGUSR1), code 75, or it is to pause here, code 0.
    """
    with StopSignals() as signals, ExitStack() as locks:
        if processes.is_main:
            for folder in folders_of(run.config):
                locks.enter_context(locked_run(folder))
            check_free(run.config.run_dir, run.resume)  # again: another process may have trained in it since
        reader = taught_reader(run, processes)  # before the tables take the memory that the teachers' need
        session = build_session(run.config, run.dataset.schema, processes)
        trainer = _start(run, processes, session, reader, signals)
        try:
            with trainer.display:
                return _run(trainer)
        except Exception:
            with processes.hang_detector.while_doing(SAVING):
                trainer.checkpoints.wait_if_possible()
            raise


def _run(trainer: Trainer) -> dict[str, Any] | None:
    if trainer.state.evaluation_left:
        evaluate_if_due(trainer)
    while trainer.state.step < trainer.total_steps and not trainer.state.stopped:
        _pause_if_due(trainer)
        train_segment(trainer)
        evaluate_if_due(trainer)
        save_if_due(trainer)
    return _finish(trainer)


def _start(
    run: CheckedRun, processes: Processes, session: Session, reader: Reader, signals: StopSignals
) -> Trainer:
    config, dataset = run.config, run.dataset
    data, training = config.data, config.training
    total_steps = min(training.epochs * reader.steps_per_epoch, training.max_steps or math.inf)
    ne = ProgressiveNE(session.outputs, training.ne_window_steps, processes.device)
    lr = LearningRate(session.optimizer, config.optimizer, int(total_steps))
    state = TrainState()
    checkpoints = open_checkpoints(config)
    checkpoint = checkpoints.latest() if run.resume else None
    if checkpoint:
        with processes.hang_detector.while_doing(LOADING):
            verify_checkpoint(checkpoint)
            saved = read_trainer_state(checkpoint)
            state = read_train_state(saved, config, dataset, checkpoint)
            load_checkpoint(checkpoint, session.model, session.optimizer)
            if state.best is not None:
                _check_best(checkpoints.best(), state)
        ne.load_state_dict(saved["ne"])
        lr.plateau = state.plateau
    else:
        load_pretrained(session.model, dataset.schema, data.path)
        if training.start_at_base_rate:
            start_at_base_rate(session.model.module, dataset, processes)
    checkpoints.check_room(session.model, session.optimizer)
    writer = None
    if processes.is_main:
        with processes.hang_detector.while_doing(LOADING):
            writer = RunWriter(
                config, dataset.schema, session.plan, processes.world_size, resumed=checkpoint is not None
            )
        writer.truncate_metrics(state.step)
        console.print(plan_table(session.plan, processes.world_size))
    trainer = Trainer(
        config=config,
        processes=processes,
        session=session,
        reader=reader,
        ne=ne,
        lr=lr,
        checkpoints=checkpoints,
        signals=signals,
        agreement=Agreement(signals, checkpoints, config.checkpoint.every_minutes),
        faults=FaultPolicy(training.nonfinite == "skip", data.split),
        divergence=Divergence(config),
        quarantine=Quarantine(
            config.run_dir / "quarantine", data.bad_rows_limit, state.step, state.quarantined, processes
        ),
        writer=writer,
        display=TrainingProgress(int(total_steps), state.step, processes.is_main),
        total_steps=int(total_steps),
        pause_at=run.pause_at,
        state=state,
        saved=replace(state) if checkpoint else None,
    )
    parameters = session.num_parameters
    trainer.display.say(
        f"{config.run_dir}: {dataset.num_rows:,} rows, {trainer.total_steps:,} steps of {data.batch_size:,} rows on "
        f"{processes.world_size} processes ({processes.device.type}); {parameters['tables']:,} parameters in "
        f"tables, {parameters['dense']:,} dense"
        + (f"; resumed at step {state.step} from {checkpoint}" if checkpoint else "")
    )
    if processes.is_main and (label := only_value(dataset, dataset.schema.label)) is not None:
        trainer.display.warn(nothing_learned(dataset, f"every row has the label {label:g}"))
    return trainer


def _check_best(best: Place, state: TrainState) -> None:
    """Find damage before the training that needs it in the end; without it the next evaluation is the best."""
    if on_every_rank((best / "trainer.json").exists)[0]:
        verify_checkpoint(best)
        return
    state.best = None
    if dist.get_rank() == 0:
        console.print(f"{best}: gone; the next evaluation, if any, counts as the best")


def train_segment(trainer: Trainer) -> None:
    """Train until the next evaluation or the end of the epoch; the pipeline is empty afterwards."""
    state, reader, config = trainer.state, trainer.reader, trainer.config
    hang_detector = trainer.processes.hang_detector
    epoch, first = divmod(state.step, reader.steps_per_epoch)
    segment_end = min((epoch + 1) * reader.steps_per_epoch, trainer.total_steps)
    if every := config.evaluation.every_steps:
        segment_end = min(segment_end, (state.step // every + 1) * every)
    batches = TimedBatches(reader.batches(epoch, first, first + segment_end - state.step), hang_detector)
    clock = Clock(state.step, state.seconds, batches)
    trainer.session.model.train()
    set_fused_step(trainer.session.model, state.step)
    trainer.lr.set(state.step)
    hang_detector.report(TRAINING, state.step)
    loss = torch.zeros(2, dtype=torch.float64, device=trainer.processes.device)  # sum, steps
    seed_draws(config.training.seed, state.step, trainer.processes.rank, trainer.processes.device)
    parts = taught_by_peers(trainer.session, batches, state.step, config, trainer.processes)
    for predictions in chain.from_iterable(run_pipeline(trainer.session, part) for part in parts):
        bad_rows = reader.bad_rows.pop(state.step % reader.steps_per_epoch, [])
        state.step += 1
        hang_detector.report(TRAINING, state.step)
        if fault := trainer.session.guard.fault(trainer.processes.cpu_group):
            trainer.display.warn(trainer.faults.take(state.step, fault))
            state.skipped_steps += 1
            state.skipped_rows += fault.num_rows
        else:
            trainer.ne.update(predictions.logits, predictions.label, predictions.weight)
            loss += torch.stack([predictions.loss, torch.ones_like(predictions.loss)])
        trainer.quarantine.add(state.step, bad_rows)
        trainer.lr.set(state.step)
        trainer.display.step(state.step)
        if state.step % config.training.log_every == 0 or state.step in (segment_end, trainer.pause_at):
            _log(trainer, clock, loss)
            loss.zero_()
        state.seconds = clock.seconds()
        trainer.agreement.step()
        if state.step < segment_end:
            if trainer.agreement.stop:
                _stop(trainer)
            _pause_if_due(trainer)
            save_if_due(trainer)
        seed_draws(config.training.seed, state.step, trainer.processes.rank, trainer.processes.device)


def save_if_due(trainer: Trainer) -> None:
    """Write a checkpoint if its time has come; at the end of a segment, after the evaluation it may bring."""
    every, step = trainer.config.checkpoint.every_steps, trainer.state.step
    due = trainer.agreement.save or (every is not None and step % every == 0)
    if due and step < trainer.total_steps:
        _save_step(trainer)
        trainer.agreement.saved()


def evaluate_if_due(trainer: Trainer) -> None:
    """Score the validation split if its time has come, and react to a metric that stopped improving."""
    config, state = trainer.config.evaluation, trainer.state
    end_of_epoch = state.step % trainer.reader.steps_per_epoch == 0
    due = (config.every_epoch and end_of_epoch) or (
        config.every_steps is not None and state.step % config.every_steps == 0
    )
    if not due:
        return
    state.evaluation_left = True
    metrics = _evaluate(trainer, config.validation, write=False)
    state.evaluation_left = False
    if config.early_stopping is None:
        return
    if not math.isfinite(metrics[config.early_stopping.monitor]):
        _say_once(
            trainer,
            f"{config.validation}: {config.early_stopping.monitor} is undefined: such evaluations decide nothing",
        )
    elif worse := take_in(config.early_stopping, metrics, state):
        trainer.lr.plateau = state.plateau
        trainer.display.say(worse)
    else:
        _save(trainer, "best")


def _finish(trainer: Trainer) -> dict[str, Any] | None:
    state, config = trainer.state, trainer.config
    stopping = config.evaluation.early_stopping
    if stopping and state.best is None:
        trainer.display.say(
            f"no evaluation is the best by {stopping.monitor}: the result is the model of the last step"
        )
    elif stopping:
        with trainer.processes.hang_detector.while_doing(SAVING):
            trainer.checkpoints.flush()
        best = trainer.checkpoints.best()
        with trainer.processes.hang_detector.while_doing(LOADING):
            verify_checkpoint(best)
            load_checkpoint(best, trainer.session.model)
    _save_step(trainer)
    splits = {split: _evaluate(trainer, split, write=True) for split in config.evaluation.splits}
    progressive = trainer.ne.compute()
    _close_checkpoints(trainer)
    # Of the hosts, in bytes: what was resident at most, summed over the processes.
    peak_memory = torch.tensor(getrusage(RUSAGE_SELF).ru_maxrss * 1024)
    dist.all_reduce(peak_memory, group=trainer.processes.cpu_group)
    if trainer.writer is None:
        return None
    rows = _rows_seen(trainer)
    result = {
        "steps": state.step,
        "rows": rows,
        "skipped_steps": state.skipped_steps,
        "skipped_rows": state.skipped_rows,
        "quarantined": trainer.quarantine.count,
        "seconds": state.seconds,
        "rows_per_second": rows / state.seconds if state.seconds else 0.0,
        "parameters": trainer.session.num_parameters,
        "table_bytes": trainer.session.table_bytes,
        "peak_memory": int(peak_memory),
        "multiply_adds": trainer.session.multiply_adds,
        "train": progressive.ne,
        "progressive": progressive.sums,
        "splits": splits,
    }
    trainer.writer.finish(result)
    return result


def _evaluate(trainer: Trainer, split: str, write: bool) -> dict[str, float]:
    """Metrics of a split, on every rank."""

    bad_rows: list[BadRow] = []

    def after_batch(skipped: list[BadRow]) -> None:
        if len(bad_rows) <= trainer.quarantine.limit:
            bad_rows.extend(skipped)
        trainer.agreement.step()
        if trainer.agreement.stop:
            _stop(trainer)

    config = trainer.config
    dataset = Dataset(config.data.path, split, config.data.bad_rows)
    batch_size = config.evaluation.batch_size or config.data.batch_size
    scores = score(trainer.session, dataset, batch_size, trainer.processes, after_batch)
    if left_out := trainer.quarantine.evaluated(split, bad_rows):
        trainer.display.say(left_out)
    shared: list[dict[str, float]] = [{}]
    if scores is not None:
        assert trainer.writer is not None
        with trainer.processes.hang_detector.while_doing(MEASURING):
            measured = scores.measure()
            shared = [measured.metrics]
            trainer.writer.log("eval", trainer.state.step, {"split": split, **shared[0]})
            if write:
                folder = trainer.writer.path / "predictions"
                with disk_errors(trainer.writer.path):
                    folder.mkdir(exist_ok=True)
                    with written_aside(folder / f"{split}.parquet") as aside:
                        scores.write(aside)
        trainer.display.say(f"{split}: {describe(measured.metrics)}")
        for note in measured.notes:
            _say_once(trainer, f"{split}: {note}")
    dist.broadcast_object_list(shared, group=trainer.processes.cpu_group)
    return shared[0]


def _say_once(trainer: Trainer, line: str) -> None:
    if line not in trainer.said:
        trainer.said.add(line)
        trainer.display.say(line)


def _log(trainer: Trainer, clock: Clock, loss: torch.Tensor) -> None:
    step = trainer.state.step
    ne, sums = trainer.ne.compute()
    timing = clock.lap(step)
    dist.all_reduce(loss)
    mean_loss = float(loss[0] / loss[1])
    _count_bad_rows(trainer)
    if step in (trainer.reader.steps_per_epoch, trainer.total_steps) and (why := trainer.ne.why_undefined()):
        trainer.display.warn(nothing_learned(trainer.reader.dataset, why))
    if trainer.writer is None:
        return
    values = {
        "rows": _rows_seen(trainer),
        "skipped_rows": trainer.state.skipped_rows,
        "loss": mean_loss,
        "lr_scale": trainer.lr.scale,
        "epoch": -(-step // trainer.reader.steps_per_epoch),  # the first is 1
        **ne,
        "progressive": sums,
        **timing,
        "rows_per_second": trainer.config.data.batch_size / timing["seconds_per_step"],
    }
    trainer.writer.log("train", step, values)
    trainer.display.report(step, values)
    for line in trainer.divergence.warnings(step, ne):
        trainer.display.warn(line)


def _count_bad_rows(trainer: Trainer) -> None:
    if more := trainer.quarantine.recount():
        trainer.display.say(more)
    trainer.state.quarantined = trainer.quarantine.count


def _rows_seen(trainer: Trainer) -> int:
    epoch, step = divmod(trainer.state.step, trainer.reader.steps_per_epoch)
    num_rows = trainer.reader.dataset.num_rows
    positions = epoch * num_rows + min(step * trainer.config.data.batch_size, num_rows)
    return positions - trainer.quarantine.count


def _stop(trainer: Trainer) -> NoReturn:
    """End as told: the exit code says "try again"."""
    told = trainer.signals.seen.name if trainer.signals.seen else "a signal to another rank"
    _leave(trainer, f"stopped by {told}", os.EX_TEMPFAIL)


def _pause_if_due(trainer: Trainer) -> None:
    if trainer.pause_at is not None and trainer.pause_at <= trainer.state.step < trainer.total_steps:
        _leave(trainer, "paused as asked", os.EX_OK)


def _leave(trainer: Trainer, why: str, code: int) -> NoReturn:
    """End with the state of this step saved."""
    unsaved = trainer.saved != trainer.state
    try:
        with trainer.processes.hang_detector.while_doing(SAVING):
            trainer.checkpoints.wait()
    except UserError as error:
        trainer.display.say(f"{error}: trying once more")
        unsaved = True
    if unsaved:
        _save_step(trainer)
    _close_checkpoints(trainer)
    trainer.display.say(f"{why} at step {trainer.state.step}, which is saved; go on with --resume")
    sys.exit(code)


def _close_checkpoints(trainer: Trainer) -> None:
    with trainer.processes.hang_detector.while_doing(SAVING):
        trainer.checkpoints.close()


def _save_step(trainer: Trainer) -> None:
    _save(trainer, f"step-{trainer.state.step:09d}")
    trainer.saved = replace(trainer.state)


def _save(trainer: Trainer, name: str) -> None:
    check_parameters(trainer.session.model, trainer.state.step)
    _count_bad_rows(trainer)  # no checkpoint of a run that must end
    content = trainer_state(trainer.state, trainer.ne, trainer.config, trainer.reader.dataset)
    with trainer.processes.hang_detector.while_doing(SAVING):
        trainer.checkpoints.save(name, trainer.session.model, trainer.session.optimizer, content)
