import pytest
import torch

from cetnet.models.component import InputShape
from cetnet.models.dcnv2 import CrossNetV2, DCNv2, DCNv2Config, LowRankCrossNet, MixtureCrossNet
from tests.models.inputs import random_inputs


@pytest.mark.parametrize("structure", ["parallel", "stacked", "stacked_parallel", "crossnet_only"])
def test_structures(structure: str) -> None:
    shape = InputShape(num_tokens=2, num_sequences=0, max_length=0, num_dense=1, embedding_dim=4)
    config = DCNv2Config(embedding_dim=4, hidden_units=(6, 5), structure=structure)  # type: ignore[arg-type]
    component = DCNv2(shape, config)
    inputs = random_inputs(shape, 3)
    dense_token = inputs.dense * component.inputs.fields
    x0 = torch.cat([inputs.tokens[:, 0], inputs.tokens[:, 1], dense_token], dim=1)
    crosses = component.crossnet(x0)
    expected = {
        "parallel": lambda: torch.cat([crosses, component.parallel(x0)], dim=1),
        "stacked": lambda: component.stacked(crosses),
        "stacked_parallel": lambda: torch.cat([component.stacked(crosses), component.parallel(x0)], dim=1),
        "crossnet_only": lambda: crosses,
    }[structure]()
    embedding, logit, auxiliary = component(inputs)
    torch.testing.assert_close(embedding, expected)
    torch.testing.assert_close(logit, expected @ component.logit.weight[0])
    assert component.output_dim == {"parallel": 17, "stacked": 5, "stacked_parallel": 10}.get(structure, 12)
    assert auxiliary is None


@pytest.mark.parametrize(
    ("cross", "kind", "num_parameters"),
    [
        ("full", CrossNetV2, 2 * (12 * 12 + 12)),
        ("low_rank", LowRankCrossNet, 2 * (2 * 12 * 3 + 12)),
        # U, V and C of each of 5 experts and one bias in each of 2 layers; 5 gates in all.
        ("mixture", MixtureCrossNet, 2 * (5 * (2 * 12 * 3 + 3 * 3) + 12) + 5 * 12),
    ],
)
@pytest.mark.parametrize("structure", ["parallel", "stacked", "stacked_parallel", "crossnet_only"])
def test_crosses(structure: str, cross: str, kind: type, num_parameters: int) -> None:
    shape = InputShape(num_tokens=3, num_sequences=0, max_length=0, num_dense=0, embedding_dim=4)
    config = DCNv2Config(
        embedding_dim=4,
        hidden_units=(5,),
        structure=structure,
        cross=cross,
        num_cross_layers=2,
        rank=3,
        num_experts=5,
    )
    component = DCNv2(shape, config)
    assert type(component.crossnet) is kind
    assert sum(p.numel() for p in component.crossnet.parameters()) == num_parameters
    assert component(random_inputs(shape, 2)).embedding.shape == (2, component.output_dim)


def test_embeddings_start_as_in_the_benchmark() -> None:
    assert DCNv2Config().embedding_std == 1e-4
