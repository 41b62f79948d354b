"""Configuration of CETNet, without its code: checking a file must not wait for torchrec to load.

Only the settings of components stand beside their code; see `CETNetConfig.components`.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from cetnet.models.component_config import ComponentConfig, check_sizes
from cetnet.models.names import ComponentName, component_name
from cetnet.models.registry import component_class, component_path
from cetnet.models.strict import Strict

FusionMode = Literal[
    "confidence_concat",
    "confidence_sum",
    "gate_concat",
    "gate_sum",
    "concat",
    "mean",
    "average",
    "confidence_average",
]

_MOST_COPIES = 1000


class FusionConfig(Strict):
    """How the components' output embeddings become one prediction."""

    mode: FusionMode = Field(
        "confidence_concat",
        description="Output embeddings are concatenated or summed; weighted by each sample's confidence "
        "(`confidence_*`, the paper's), by a learned softmax gate (`gate_*`), or not (`concat`, `mean`). `average`, "
        "`confidence_average`: the mean of the components' logits; nothing is learned.",
    )
    stop_gradient: bool = Field(
        True,
        description="Keep the fused loss from the components' logits: the confidence weights are constants (paper, "
        "3.4) and, in modes `*average`, the logits too, so that components learn as if alone.",
    )
    temperature: float = Field(
        1.0, gt=0, description="Of the softmax over components; above 1 the weights become more equal."
    )
    head: Literal["mlp", "bilinear"] = Field(
        "mlp",
        description="What reads the joined embedding: `mlp` = hidden_units, then an affine map (none: the "
        "paper's); `bilinear` = FinalMLP's fusion of the two halves of a sum or mean.",
    )
    hidden_units: tuple[int, ...] = Field((), description="Hidden layers of head `mlp`, with ReLU.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout after each hidden layer of head `mlp`.")
    batch_norm: bool = Field(False, description="BatchNorm in the hidden layers of head `mlp`.")
    num_heads: int = Field(1, gt=0, description="Heads of head `bilinear`.")

    @property
    def averages(self) -> bool:
        """Whether logits are averaged, and nothing is learned."""
        return self.mode.endswith("average")

    @model_validator(mode="after")
    def _check(self) -> "FusionConfig":
        check_sizes(self)
        if self.averages and (self.hidden_units or self.head != "mlp"):
            raise ValueError(
                f"mode {self.mode} is a mean of logits, without a head; leave head and hidden_units out, or use mode "
                "mean"
            )
        if self.head == "bilinear" and self.mode.endswith("concat"):
            raise ValueError(
                f"head bilinear halves a sum or mean into two streams, which mode {self.mode} does not have"
            )
        return self


class NoCollaboration(Strict):
    """Components learn nothing from each other."""

    kind: Literal["none"] = "none"


class SymmetricKL(Strict):
    """The paper's: KL in both directions, averaged over the pairs of components."""

    kind: Literal["symmetric_kl"] = "symmetric_kl"
    weight: float = Field(0.5, ge=0, description="alpha; the paper tunes it among 0.1, 0.5, 1.")
    detach: bool = Field(
        False, description="Treat the other component as a constant in each direction of the KL."
    )


class MutualLearning(Strict):
    """Deep mutual learning: each component towards the mean of its peers' KL, the peers constant."""

    kind: Literal["mutual_learning"]
    weight: float = Field(1.0, ge=0, description="Of the sum over components; the paper has 1.")


class Distillation(Strict):
    """The ensemble teaches its components (ONE, KDCL)."""

    kind: Literal["distillation"]
    weight: float = Field(1.0, ge=0, description="Of the sum over components; the papers have 1.")
    teacher: Literal["fused", "mean"] = Field(
        "fused", description="`fused`: the fused logit (ONE); `mean`: the mean of the components' (KDCL)."
    )
    temperature: float = Field(
        1.0, gt=0, description="Divides all logits; the loss is multiplied by its square. ONE has 3."
    )


class Codistillation(Strict):
    """Each component towards the mean prediction of its peers as they were some steps ago (Anil et al.)."""

    kind: Literal["codistillation"]
    weight: float = Field(1.0, ge=0, description="Of the sum over components; the paper has 1.")
    every_steps: int = Field(
        50,
        gt=0,
        le=10_000,
        description="Steps between exchanges; so many batches are scored beforehand, and held in memory.",
    )
    warm_up_steps: int = Field(0, ge=0, description="Steps before the first exchange.")
    temperature: float = Field(
        1.0, gt=0, description="Divides all logits; the loss is multiplied by its square."
    )


Collaboration = Annotated[
    NoCollaboration | SymmetricKL | MutualLearning | Distillation | Codistillation,
    Field(discriminator="kind"),
]


class Teaching(Strict):
    """How a model learns from the predictions of trained ones, beside the labels."""

    weight: float = Field(0.5, ge=0, le=1, description="Of the soft labels; the labels have the rest.")
    temperature: float = Field(
        1.0, gt=0, description="Divides all logits of that loss, which is multiplied by its square."
    )
    weighting: Literal["mean", "adaptive"] = Field(
        "mean",
        description="Of several teachers: equal, or for each row by a gate that reads their logits and learns from "
        "the labels.",
    )


def _of_kind(settings: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """The settings of one component, checked by the class that its kind names."""
    if not isinstance(settings, dict):
        return handler(settings)
    if "kind" not in settings:
        raise ValueError("no kind is given, which says what model it is")
    component_path(settings["kind"])
    if not (info.context or {}).get("components", True):
        return settings
    return handler(component_class(settings["kind"]).Config.model_validate(settings))


_Component = Annotated[SerializeAsAny[ComponentConfig], WrapValidator(_of_kind)]


class CETNetConfig(Strict):
    """An ensemble; with one component it is that single model, with neither fusion nor collaboration.

    Validating `components` imports their classes, and torch with them. In the validation context
    `{"components": False}` they stay mappings, whose names and kinds alone are checked.
    """

    components: dict[ComponentName, _Component] = Field(
        min_length=1,
        description="Components by the names that tables and metrics carry; each has a `kind`. `copies: k` "
        "makes k of one, called <name>_1 to <name>_k.",
    )
    shared_tables: bool = Field(
        False, description="One set of tables for all components, instead of one each (an ablation)."
    )
    component_weight: float = Field(
        1.0, ge=0, description="Weight of each component's own loss; 0: only the fused prediction learns."
    )
    fusion: FusionConfig = FusionConfig()
    collaboration: Collaboration = SymmetricKL()

    @field_validator("components", mode="wrap")
    @classmethod
    def _copied(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, dict):
            return handler(value)
        copies = {
            name: settings.get("copies") for name, settings in value.items() if isinstance(settings, dict)
        }
        # With the names and keys as they are written, which errors tell.
        configs = handler({name: _without_copies(settings) for name, settings in value.items()})
        return _with_copies(configs, copies)

    @field_validator("collaboration", mode="before")
    @classmethod
    def _default_kind(cls, value: Any) -> Any:
        # So that `model.collaboration.weight=0.1` alone is enough.
        return {"kind": "symmetric_kl", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _check(self) -> "CETNetConfig":
        fusion, untaught = self.fusion, isinstance(self.collaboration, NoCollaboration)
        if (
            not self.component_weight
            and untaught
            and fusion.mode.startswith("confidence")
            and fusion.stop_gradient
        ):
            raise ValueError(
                f"fusion.mode {fusion.mode} weighs components by predictions that component_weight 0, collaboration "
                "none and stop_gradient leave untrained; change one of these"
            )
        if not self.component_weight and fusion.averages and fusion.stop_gradient:
            raise ValueError(
                f"with component_weight 0, and fusion.mode {fusion.mode} under stop_gradient, no loss by the label "
                "reaches a component; change one of these"
            )
        if not self.component_weight and isinstance(self.collaboration, Codistillation):
            raise ValueError(
                "collaboration codistillation is of components that learn by themselves; set component_weight"
            )
        resolved = [c for c in self.components.values() if isinstance(c, ComponentConfig)]
        sizes = {(c.embedding_dim, c.embedding_std) for c in resolved}
        if self.shared_tables and len(sizes) > 1:
            raise ValueError("shared_tables needs components of one embedding_dim and one embedding_std")
        return self

    @property
    def outputs(self) -> list[str]:
        """`fused`, then, in an ensemble whose components have losses of their own, each of them."""
        return ["fused", *(self.components if len(self.components) > 1 and self.component_weight else [])]


def _without_copies(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {key: value for key, value in settings.items() if key != "copies"}


def _with_copies(components: dict[str, Any], copies: dict[str, Any]) -> dict[str, Any]:
    expanded: dict[str, Any] = {}
    for name, settings in components.items():
        count = copies.get(name)
        if count is None:
            named = {name: settings}
        elif isinstance(count, int) and 0 < count <= _MOST_COPIES:
            named = {component_name(f"{name}_{i}"): settings for i in range(1, count + 1)}
        else:
            raise ValueError(
                f"component {name!r}: copies must be a number from 1 to {_MOST_COPIES}, not {count!r}"
            )
        if taken := set(named) & set(expanded):
            raise ValueError(f"component {min(taken)!r} is there twice, once as a copy; rename one")
        expanded |= named
    return expanded
