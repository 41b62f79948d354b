"""What every component must do. A new component is covered by one line in CONFIGS."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.component_config import ComponentConfig
from cetnet.models.dcn import DCNConfig
from cetnet.models.dcnv2 import DCNv2Config
from cetnet.models.deepfm import DeepFMConfig
from cetnet.models.dhen import DHENConfig
from cetnet.models.dien import DIENConfig
from cetnet.models.din import DINConfig
from cetnet.models.dmin import DMINConfig
from cetnet.models.dnn import DNNConfig
from cetnet.models.finalmlp import FinalMLPConfig
from cetnet.models.fm import FMConfig
from cetnet.models.interformer import InterFormerConfig
from cetnet.models.ipnn import IPNNConfig
from cetnet.models.masknet import MaskNetConfig
from cetnet.models.registry import COMPONENTS, component_class
from cetnet.models.wide_deep import WideDeepConfig
from cetnet.models.wukong import WukongConfig
from cetnet.models.xdeepfm import XDeepFMConfig
from tests.models.inputs import random_inputs, small_schema, small_shape

SMALL = {"embedding_dim": 8, "hidden_units": (16, 8)}
ALL_INTERACTIONS = ("dot", "dcn", "attention", "linear", "convolution")
CONFIGS: dict[str, ComponentConfig] = {
    "dcnv2": DCNv2Config(**SMALL),
    "dcnv2_stacked": DCNv2Config(**SMALL, structure="stacked", dense="token"),
    "dcnv2_stacked_parallel": DCNv2Config(**SMALL, structure="stacked_parallel", stacked_units=(7,)),
    "dcnv2_crossnet_only": DCNv2Config(**SMALL, structure="crossnet_only"),
    "dhen": DHENConfig(**SMALL),
    "dhen_all": DHENConfig(**SMALL, interactions=ALL_INTERACTIONS, tokens_per_interaction=2, dense="field"),
    "dhen_sum": DHENConfig(**SMALL, ensemble="sum", readout="tokens"),
    "dhen_weighted_sum": DHENConfig(**SMALL, ensemble="weighted_sum"),
    "dcnv2_low_rank": DCNv2Config(**SMALL, cross="low_rank", rank=4),
    "dcnv2_mixture": DCNv2Config(**SMALL, cross="mixture", rank=4, num_experts=2, num_cross_layers=2),
    "dcn": DCNConfig(**SMALL),
    "dnn": DNNConfig(**SMALL),
    "dnn_dice": DNNConfig(**SMALL, activation="dice"),
    "dnn_prelu": DNNConfig(**SMALL, activation="prelu"),
    "ipnn": IPNNConfig(**SMALL),
    "ipnn_products": IPNNConfig(**SMALL, embeddings=False, activation="silu"),
    "finalmlp": FinalMLPConfig(**SMALL, hidden_units2=(12,), num_heads=4, feature_selection=False),
    "finalmlp_selected": FinalMLPConfig(
        **SMALL,
        hidden_units2=(8,),
        num_heads=2,
        selection_units=(6,),
        context1=("c0",),
        context2=("c1",),
    ),
    "finalmlp_learned_gates": FinalMLPConfig(**SMALL, hidden_units2=(8,), selection_units=(6,)),
    "masknet": MaskNetConfig(**SMALL, num_blocks=2, block_dim=6, reduction_ratio=0.5),
    "masknet_serial": MaskNetConfig(**SMALL, structure="serial", embedding_norm=False, block_norm=False),
    "wukong": WukongConfig(
        **SMALL,
        activation="silu",
        num_fmb_tokens=2,
        num_lcb_tokens=3,
        rank=3,
        fmb_hidden_units=(8,),
        num_layers=2,
    ),
    "wukong_unprojected": WukongConfig(**SMALL, num_layers=1, rank=None, fmb_hidden_units=()),
    "din": DINConfig(**SMALL, attention_units=(6,)),
    "din_scores": DINConfig(
        **SMALL, attention_units=(6, 4), attention_activation="sigmoid", softmax=False, activation="relu"
    ),
    "dien": DIENConfig(**SMALL, attention_units=(6,)),
    "dien_auxiliary": DIENConfig(**SMALL, attention="bilinear", auxiliary_weight=1.0, auxiliary_units=(4,)),
    "dien_dot": DIENConfig(**SMALL, attention="dot"),
    "dmin": DMINConfig(**SMALL, attention_units=(6,), activation="silu"),
    "dmin_one_interest": DMINConfig(
        **SMALL,
        attention_units=(6,),
        attention_activation="silu",
        num_heads=1,
        refiner=False,
        position_dim=0,
        bn_only_once=True,
    ),
    "interformer_mixture": InterFormerConfig(
        **SMALL, num_heads=2, pffn="mixture", gating="identity", pooled_tokens=True, rotary_cls=False
    ),
    "interformer_hypernetwork": InterFormerConfig(
        **SMALL,
        num_heads=1,
        num_layers=1,
        pffn="hypernetwork",
        pma_keys="body",
        activation="prelu",
        pffn_rank=2,
    ),
    "interformer_literal": InterFormerConfig(
        **SMALL, num_heads=2, residual=False, share_cross_arch=True, interaction_layers=2
    ),
    "interformer_separate": InterFormerConfig(**SMALL, num_heads=2, num_layers=1, sequence_join="separate"),
    "fm": FMConfig(embedding_dim=8),
    "deepfm": DeepFMConfig(**SMALL),
    "wide_deep": WideDeepConfig(**SMALL),
    "xdeepfm": XDeepFMConfig(**SMALL, cin_units=(4, 3)),
    "xdeepfm_cin": XDeepFMConfig(embedding_dim=8, hidden_units=(), cin_units=(4,)),
    "interformer": InterFormerConfig(**SMALL, num_heads=2),
    "interformer_tokens": InterFormerConfig(**SMALL, readout="tokens", num_layers=1, num_summary_tokens=2),
}
any_component = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def build(config: ComponentConfig, shape: InputShape) -> Component:
    torch.manual_seed(0)
    return component_class(config.kind)(shape, config)  # type: ignore[call-arg]


def total(output: Output) -> torch.Tensor:
    """Something that every parameter has a part in."""
    return output.logit.sum() + (0 if output.auxiliary is None else output.auxiliary.sum())


def test_every_registered_component_is_covered() -> None:
    assert {config.kind for config in CONFIGS.values()} == set(COMPONENTS)


@any_component
@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize(("num_sequences", "num_dense"), [(2, 3), (1, 0), (0, 1)])
def test_output_shapes(config: ComponentConfig, batch_size: int, num_sequences: int, num_dense: int) -> None:
    shape = small_shape(config, small_schema(3, num_sequences, num_dense))
    component = build(config, shape)
    embedding, logit, auxiliary = component(random_inputs(shape, batch_size))
    assert auxiliary is None or auxiliary.shape == (batch_size,)
    assert embedding.shape == (batch_size, component.output_dim)
    assert logit.shape == (batch_size,)
    assert embedding.isfinite().all()
    assert logit.isfinite().all()


@any_component
@pytest.mark.parametrize("num_sequences", [0, 2])
def test_gradients_reach_every_parameter_and_input(config: ComponentConfig, num_sequences: int) -> None:
    shape = small_shape(config, small_schema(3, num_sequences))
    component = build(config, shape)
    inputs = random_inputs(shape, 16)
    inputs.tokens.requires_grad_()
    inputs.sequences.requires_grad_()
    total(component(inputs)).backward()
    unreached = [name for name, p in component.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached
    assert inputs.tokens.grad is not None
    assert inputs.tokens.grad.flatten(2).any(2).all()
    if shape.num_sequences:
        assert inputs.sequences.grad is not None
        assert inputs.sequences.grad.isfinite().all()
        valid = torch.arange(shape.max_length) < inputs.lengths.unsqueeze(2)
        assert torch.equal(inputs.sequences.grad.any(3), valid)


@any_component
def test_gradcheck(config: ComponentConfig) -> None:
    shape = small_shape(config)
    component = build(config, shape).double()
    inputs = random_inputs(shape, 3, dtype=torch.float64)
    lengths = torch.tensor([[0, 0], [5, 2], [1, 4]])[:, : shape.num_sequences]
    inputs = inputs._replace(sequences=torch.randn_like(inputs.sequences))  # at zeros, norms have a kink

    def outputs(tokens: torch.Tensor, sequences: torch.Tensor, dense: torch.Tensor) -> tuple:
        return component(inputs._replace(tokens=tokens, sequences=sequences, lengths=lengths, dense=dense))[
            :2
        ]

    leaves = (inputs.tokens, inputs.sequences, inputs.dense)
    assert torch.autograd.gradcheck(outputs, tuple(x.requires_grad_() for x in leaves), fast_mode=True)


@any_component
def test_eval_output_of_a_row_does_not_depend_on_the_others(config: ComponentConfig) -> None:
    settings = {
        "batch_norm": True,
        "batch_norm2": True,
        "dropout": 0.5,
        "dropout2": 0.5,
        "attention_dropout": 0.5,
    }
    config = config.model_copy(update={k: v for k, v in settings.items() if hasattr(config, k)})
    shape = small_shape(config)
    component = build(config, shape)
    component(random_inputs(shape, 20, seed=1))  # so that running statistics are not those of the start
    component.eval()
    inputs = random_inputs(shape, 9)
    embedding, logit, _ = component(inputs)
    for row in range(9):
        alone = component(type(inputs)(*(x[row : row + 1] for x in inputs)))
        torch.testing.assert_close(alone[:2], (embedding[row : row + 1], logit[row : row + 1]))


@pytest.mark.parametrize("config", [c for c in CONFIGS.values() if component_class(c.kind).reads_sequences])
@pytest.mark.parametrize("separate", [2, 0])
def test_padding_has_no_influence(config: ComponentConfig, separate: int) -> None:
    shape = small_shape(config, small_schema(separate=separate))
    component = build(config, shape)
    inputs = random_inputs(shape, 32)
    beyond = torch.arange(shape.max_length) >= inputs.lengths.unsqueeze(2)
    garbage = inputs.sequences.masked_fill(beyond.unsqueeze(3), torch.nan)
    found = []
    for sequences in (inputs.sequences, garbage):
        component.zero_grad()
        torch.manual_seed(0)  # the auxiliary loss draws events
        output = component(inputs._replace(sequences=sequences))
        total(output).backward()
        found.append(
            [*output[: 2 + (output.auxiliary is not None)], *(p.grad for p in component.parameters())]
        )
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    trimmed = inputs._replace(lengths=inputs.lengths.clamp(max=3))
    shorter = trimmed._replace(sequences=inputs.sequences[:, :, :3])
    torch.testing.assert_close(component(shorter)[:2], component(trimmed)[:2])


@any_component
def test_empty_histories(config: ComponentConfig) -> None:
    shape = small_shape(config)
    component = build(config, shape)
    inputs = random_inputs(shape, 4)
    inputs = inputs._replace(
        sequences=torch.zeros_like(inputs.sequences), lengths=torch.zeros_like(inputs.lengths)
    )
    output = component(inputs)
    total(output).backward()
    assert output.logit.isfinite().all()
    for name, parameter in component.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def in_bf16(inputs: Inputs) -> Inputs:
    """As a tower gives them to its component."""
    return inputs._replace(tokens=inputs.tokens.bfloat16(), sequences=inputs.sequences.bfloat16())


@any_component
def test_bf16_autocast(config: ComponentConfig) -> None:
    shape = small_shape(config)
    component = build(config, shape)
    inputs = random_inputs(shape, 16)
    exact = component(inputs)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = component(in_bf16(inputs))
    logit = output.logit
    assert logit.dtype == torch.float32
    assert (logit - exact).abs().mean() < 0.05 * exact.abs().mean()
    total(output).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in component.parameters())


@any_component
def test_learns_by_heart(config: ComponentConfig) -> None:
    shape = small_shape(config)
    component = build(config, shape)
    inputs = random_inputs(shape, 32)
    label = (torch.arange(32) % 2).float()
    # What a component has in tables of its own is learned too: FM has hardly anything else.
    inputs.extra.requires_grad_(inputs.extra.numel() > 0)
    optimizer = torch.optim.Adam(
        [{"params": list(component.parameters())}, {"params": [inputs.extra], "lr": 0.5}], lr=0.01
    )
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(component(inputs)[1], label)
        loss.backward()
        optimizer.step()
    assert loss < 0.2


@any_component
def test_unknown_settings_are_refused(config: ComponentConfig) -> None:
    settings = config.model_dump()
    assert type(config).model_validate(settings) == config
    with pytest.raises(ValidationError, match="no_such_setting"):
        type(config).model_validate({**settings, "no_such_setting": 1})


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"known: dcn, dcnv2, .*dotted path"):
        component_class("no_such_kind")


ONE_FEATURE_IS_TOO_FEW = {"ipnn_products", "finalmlp_selected"}
"""There is no product of two, and the configuration names a second feature."""


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - ONE_FEATURE_IS_TOO_FEW))
def test_one_feature(name: str) -> None:
    config = CONFIGS[name]
    shape = small_shape(config, small_schema(1, 0, 0))
    component = build(config, shape)
    output = component(random_inputs(shape, 5))
    assert output.logit.isfinite().all()
    total(output).backward()
    assert all(p.grad is not None for p in component.parameters())


@any_component
def test_small_and_empty_batches(config: ComponentConfig) -> None:
    """One row, no event anywhere, histories of one padded position, tokens of zeros: in training and in evaluation,
    float32 and bfloat16."""
    settings = {"batch_norm": True, "batch_norm2": True, "dropout": 0.5}
    config = config.model_copy(update={k: v for k, v in settings.items() if hasattr(config, k)})
    shape = small_shape(config)
    component = build(config, shape)
    one, empty = random_inputs(shape, 1), random_inputs(shape, 4)
    empty = empty._replace(
        sequences=torch.zeros_like(empty.sequences), lengths=torch.zeros_like(empty.lengths)
    )
    batches = [
        one,
        empty,
        empty._replace(sequences=empty.sequences[:, :, :1]),
        empty._replace(tokens=torch.zeros_like(empty.tokens)),
    ]
    for inputs in batches:
        for training in (True, False):
            for bf16 in (False, True):
                component.train(training).zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    output = component(in_bf16(inputs) if bf16 else inputs)
                assert output.logit.dtype == torch.float32
                assert output.logit.isfinite().all()
                if training:
                    total(output).backward()
                    assert all(p.grad is not None and p.grad.isfinite().all() for p in component.parameters())


SETTINGS = {
    "dense": "other",
    "activation": "tanh",
    "dropout": 0.3,
    "dropout2": 0.3,
    "batch_norm": True,
    "batch_norm2": True,
    "attention_activation": "tanh",
    "attention_dropout": 0.3,
    "attention_units": (5,),
    "hidden_units": (20,),
    "hidden_units2": (4,),
    "dot_hidden_units": (9,),
    "fmb_hidden_units": (9,),
    "interactions": ("linear",),
    "readout": "tokens",
}


@pytest.mark.parametrize("kind", sorted(COMPONENTS))
def test_every_setting_changes_the_component(kind: str) -> None:
    config = CONFIGS[kind]
    shape = small_shape(config)
    inputs = random_inputs(shape, 8)

    def built(config: ComponentConfig) -> tuple:
        component = build(config, shape)
        torch.manual_seed(1)
        return repr(component), [p.shape for p in component.parameters()], component(inputs).embedding.shape

    for name, value in SETTINGS.items():
        if name in type(config).model_fields:
            if name == "dense":
                value = {"field": "token", "token": "field"}[config.dense]  # type: ignore[attr-defined]
            assert built(config.model_copy(update={name: value})) != built(config), name


@any_component
def test_one_row_trains_with_batch_norm(config: ComponentConfig) -> None:
    if hasattr(config, "batch_norm"):
        config = config.model_copy(update={"batch_norm": True})
    shape = small_shape(config)
    component = build(config, shape)
    total(component(random_inputs(shape, 1))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in component.parameters())


@any_component
def test_200_steps_of_noise_stay_finite(config: ComponentConfig) -> None:
    shape = small_shape(config)
    component = build(config, shape)
    optimizer = torch.optim.Adam(component.parameters(), lr=0.01)
    for step in range(200):
        inputs = random_inputs(shape, 16, seed=step)
        label = (torch.arange(16) % 3 == 0).float()
        output = component(inputs)
        loss = F.binary_cross_entropy_with_logits(output.logit, label)
        loss = loss if output.auxiliary is None else loss + output.auxiliary.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    assert all(p.isfinite().all() for p in component.parameters())
