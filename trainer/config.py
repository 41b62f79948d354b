"""The experiment file: one YAML, checked as a whole before anything starts."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from cetnet.models.config import CETNetConfig, Teaching
from cetnet.models.names import SplitName
from cetnet.models.rules import indivisible
from cetnet.models.strict import Strict
from cetnet.sharding.config import ShardingConfig
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import UsablePath, UsablePlace
from cetnet.trainer.strict_yaml import read_strict_yaml
from cetnet.trainer.yaml_files import checked, read_yaml, yaml_problem

LearningRate = Annotated[float, Field(gt=0, le=1e6)]


class DataConfig(Strict):
    """What is read, and in which order."""

    path: UsablePath = Field(
        description="A prepared dataset: a directory with schema.yaml and a directory per split."
    )
    split: SplitName = Field("train", description="Split that is trained on.")
    batch_size: int = Field(
        4096, gt=0, le=1 << 24, description="Rows per step over all processes (global batch size)."
    )
    order: Literal["shuffled", "sequential"] = Field(
        "shuffled", description="`sequential` keeps the order of the files: for a log in time order."
    )
    lanes: int = Field(
        16,
        gt=0,
        le=1 << 16,
        description="Shares of the shuffled epoch: a multiple of every world size you will use.",
    )
    shuffle_rows: int = Field(
        65_536, gt=0, description="Rows of a lane that are shuffled together, at least."
    )
    prefetch: int = Field(4, ge=0, le=1024, description="Batches assembled ahead of the step.")
    threads: int = Field(1, gt=0, le=1024, description="Decoding threads per process.")
    bad_rows: Literal["fail", "quarantine"] = Field(
        "fail",
        description="What a null, an id outside its table, a NaN, ... does: end the run, or have its row skipped, "
        "counted and written to `quarantine/` in run_dir.",
    )
    bad_rows_limit: int = Field(
        1000, ge=0, description="More quarantined rows end the run; every epoch counts them anew."
    )

    @property
    def shuffled_lanes(self) -> int | None:
        """`lanes`, if the order has any."""
        return self.lanes if self.order == "shuffled" else None


class SparseOptimizerConfig(Strict):
    """Optimizer of the sharded tables, fused into the backward pass; touches only the rows looked up."""

    kind: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = Field(
        "rowwise_adagrad", description="`adam` runs on CUDA only."
    )
    lr: LearningRate = 0.1
    eps: float = Field(1e-8, ge=1e-30, le=1e6)


class DenseOptimizerConfig(Strict):
    """Optimizer of parameters that every process holds."""

    kind: Literal["adam", "adamw", "adagrad", "sgd"] = "adam"
    lr: LearningRate = 1e-3
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1e38,
        description="L2 term added to the gradient (decoupled for adamw); on tables: of the whole table.",
    )


class OptimizerConfig(Strict):
    """Optimizers, clipping and the learning-rate schedule (which scales all of them)."""

    sparse: SparseOptimizerConfig = SparseOptimizerConfig()
    dense: DenseOptimizerConfig = DenseOptimizerConfig()
    dense_tables: DenseOptimizerConfig = Field(
        DenseOptimizerConfig(), description="Optimizer of the tables named by `sharding.dense_tables`."
    )
    clip_norm: float | None = Field(None, gt=0, description="Largest norm of the dense gradients.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises linearly.")
    decay: Literal["none", "linear", "cosine"] = Field(
        "linear", description="How the learning rate falls in the last steps; `none`: it stays the full one."
    )
    decay_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Those steps, as a share of all; 1: it falls from the end of the warm-up.",
    )
    final_lr: float = Field(
        0.0, ge=0, le=1, description="Learning rate of the last step, as a share of the full."
    )


class TeacherConfig(Teaching):
    """Finished runs that teach this one; a folder, or a list of them, stands for `runs` alone."""

    runs: tuple[UsablePath, ...] = Field(
        min_length=1,
        description="Their folders. Before the run starts they score its training split, once, into `teachers/` of "
        "run_dir.",
    )

    @model_validator(mode="before")
    @classmethod
    def _runs_alone(cls, content: Any) -> Any:
        if isinstance(content, str | Path | list):
            content = {"runs": content}
        if isinstance(content, dict) and isinstance(content.get("runs"), str | Path):
            content = {**content, "runs": [content["runs"]]}
        return content

    @model_validator(mode="after")
    def _check(self) -> "TeacherConfig":
        if self.weighting == "adaptive" and len(self.runs) < 2:
            raise ValueError(
                "weighting adaptive chooses between several runs, and there is one; name more, or use mean"
            )
        return self


class TrainingConfig(Strict):
    """The loop."""

    epochs: int = Field(1, gt=0)
    max_steps: int | None = Field(None, gt=0, description="Stop after so many steps.")
    seed: int = Field(42, ge=0)
    start_at_base_rate: bool = Field(
        True,
        description="The biases of all heads start at the logit of the positives' share of the split that is trained "
        "on; otherwise at 0, and the first steps and updates say little but that clicks are rare.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="Of the components; losses are always fp32. On CPUs `bf16` pays for wide layers, in processors "
        "that have its products; narrow ones and attention are slower in it.",
    )
    compile: bool = Field(
        False,
        description="Compile the components (torch.compile) at the first steps, which takes a minute or so and needs "
        "a C++ compiler (on a GPU a C compiler). Pays where a step has many small operations.",
    )
    table_precision: Literal["fp32", "fp16"] = Field(
        "fp32", description="Of the sharded tables' rows; what is looked up is always fp32."
    )
    nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="What to do about a step whose loss or gradient is NaN or infinite: stop the run, or leave the "
        "step out, as long as it can be left out whole.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    timeout_minutes: float = Field(
        10,
        gt=0,
        description="How long a process may not answer, or keep the others waiting, before all are ended.",
    )
    log_every: int = Field(
        50, gt=0, description="Steps between progress lines, metrics and TensorBoard points."
    )
    ne_window_steps: int = Field(
        100, gt=0, le=1 << 20, description="Steps in the window of the progressive NE."
    )
    teacher: TeacherConfig | None = Field(
        None,
        description="Distillation: the folder of a finished run, or several, whose predictions every output learns "
        "beside the labels.",
    )


class EarlyStoppingConfig(Strict):
    """For training over many epochs: what happens when the monitored metric stops improving."""

    monitor: str = Field("auc/fused", description="Metric of the validation split; `ne` and `logloss` fall.")
    patience: int = Field(2, gt=0, description="Stop at the n-th evaluation in a row without an improvement.")
    lr_factor: float = Field(
        0.1, gt=0, le=1, description="The learning rate is scaled by this at each of them."
    )


class EvaluationConfig(Strict):
    """Held-out splits."""

    splits: tuple[SplitName, ...] = Field(
        ("validation", "test"), description="Scored when training has ended."
    )
    validation: SplitName = Field("validation", description="Split scored during training.")
    every_steps: int | None = Field(None, gt=0, description="Steps between evaluations during training.")
    every_epoch: bool = Field(False, description="Evaluate at the end of each epoch.")
    batch_size: int | None = Field(
        None, gt=0, le=1 << 24, description="Rows per step; default: `data.batch_size`."
    )
    early_stopping: EarlyStoppingConfig | None = None


class CheckpointConfig(Strict):
    """Checkpoints are written in the background and appear whole or not at all."""

    path: UsablePlace | None = Field(
        None,
        description="Where they are kept: a directory, or the URL of an object store (`s3://bucket/run`); default: "
        "`<run_dir>/checkpoints`.",
    )
    every_steps: int | None = Field(
        None, gt=0, description="Steps between checkpoints; always one at the end."
    )
    every_minutes: float | None = Field(
        None, gt=0, description="Minutes between checkpoints, beside or instead of `every_steps`."
    )
    keep: int = Field(2, gt=0, description="How many of the newest are kept.")


class RunConfig(Strict):
    """A training run."""

    run_dir: UsablePath = Field(
        Path("runs/run"), description="Folder that receives everything the run writes."
    )
    data: DataConfig
    model: CETNetConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    sharding: ShardingConfig = ShardingConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if complaint := indivisible(batch_size=self.data.batch_size, lanes=self.data.shuffled_lanes):
            raise ValueError(complaint)
        stopping = self.evaluation.early_stopping
        if stopping and not (self.evaluation.every_epoch or self.evaluation.every_steps):
            raise ValueError(
                "evaluation.early_stopping needs evaluation.every_epoch or evaluation.every_steps"
            )
        return self


def load_config(path: Path, overrides: list[str] | None = None, *, resolve: bool = True) -> RunConfig:
    """Read an experiment file and apply `key=value` overrides to it; see `read_settings` and `parse_config`."""
    return parse_config(read_settings(path, overrides), path, resolve=resolve)


def read_settings(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """What an experiment file says, with `key=value` overrides applied; not checked yet.

    An override's key is dotted (`training.seed=7`), its value is YAML and replaces what the file has there.
    Paths are relative to the working directory; ~ and $NAME in them are expanded.

    Raises:
        UserError: naming the key and the remedy.
    """
    settings = read_yaml(path)
    for override in overrides or []:
        _override(settings, override)
    return settings


def parse_config(settings: Any, source: object, *, resolve: bool = True) -> RunConfig:
    """The configuration of settings from somewhere, which the UserError names that says what is wrong with them.

    Unless `resolve`, components stay as they are written, mappings: their classes need torch, which takes seconds
    to load.
    """
    return checked(settings, RunConfig, source, {"components": resolve})


def _override(settings: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form key=value")
    *parents, last = key.split(".")
    for parent in parents:
        settings = settings.setdefault(parent, {})
        if not isinstance(settings, dict):
            raise UserError(f"override {override!r}: {parent!r} is a value, not a section")
    try:
        settings[last] = read_strict_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not YAML: {yaml_problem(error)}") from error
