"""How cost grows: points are trained and timed as asked, ratios are right, figures are drawn."""

from pathlib import Path

import pytest
import torch

from cetnet.benchmarks.growth.__main__ import _fitting
from cetnet.benchmarks.growth.axes import AXES, Axis, Point, Ratio, Timing
from cetnet.benchmarks.growth.results import draw, markdown, result, save
from cetnet.benchmarks.growth.steps import measure, random_batch
from cetnet.models.schema import Feature, Schema

SCHEMA = Schema(
    label="label",
    tables={"user": 50, "item": 20},
    features=(
        Feature(name="user", kind="categorical"),
        Feature(name="items", kind="sequence", table="item", max_length=40, mean_length=10),
        Feature(name="price", kind="dense"),
    ),
)
MODEL = {"components": {"dnn": {"kind": "dnn", "embedding_dim": 4, "hidden_units": [8]}}}


def axis(bars: bool = False) -> Axis:
    points = [
        Point("alone", 1, SCHEMA, MODEL, 16),
        Point("alone", 2, SCHEMA, MODEL, 32, ranks=2),
        Point("bf16", 1, SCHEMA, MODEL, 16, precision="bf16"),
    ]
    ratios = [Ratio("second / (first + third)", 1, (0, 2), 0.9)]
    return Axis("size", "A small DNN.", points, "proportional", ratios, bars)


TIMINGS = [
    Timing(1.0, 3, [0.1, 0.2, 0.3], 10**9),
    Timing(2.0, 3, [0.3, 0.4, 0.8], 10**9),
    Timing(1.5, 3, [0.2, 0.2, 0.1], 10**9),
]


def test_points_are_timed_in_processes_of_their_own_and_together() -> None:
    apart = measure(axis().points[:2], rounds=2, device="cpu")
    together = measure([axis().points[i] for i in (0, 2)], rounds=2, device="cpu", together=True)
    for timing in (*apart, *together):
        assert len(timing.seconds) == 2
        assert min(timing.seconds) > 0
        assert timing.steps >= 1
        assert timing.build_seconds > 0
        assert timing.peak_bytes > 10**8
    assert apart[1].peak_bytes > 1.5 * apart[0].peak_bytes  # two processes'


def test_a_process_that_fails_is_named() -> None:
    broken = Point("broken", 3, SCHEMA, MODEL, 15, ranks=1, precision="fp64")
    with pytest.raises(ChildProcessError, match="broken 3"):
        measure([broken], rounds=1, device="cpu")


def test_batches_have_ids_of_all_rows_and_lengths_of_the_mean() -> None:
    generator = torch.Generator().manual_seed(1)
    batch = random_batch(SCHEMA, 4000, 0.0, generator)
    assert batch.sparse.keys() == ["user", "items"]
    assert batch.dense.shape == (4000, 1)
    user, items = batch.sparse["user"], batch.sparse["items"]
    assert user.values().unique().tolist() == list(range(50))
    assert user.lengths().tolist() == [1] * 4000
    assert items.lengths().tolist() == [10] * 4000
    assert items.values().unique().tolist() == list(range(20))
    lengths = random_batch(SCHEMA, 4000, 1.0, generator).sparse["items"].lengths()
    assert lengths.max() == 40  # cut
    assert lengths.log1p().std() > 0.5
    assert 8 < lengths.float().mean() < 10


def test_ratios_are_of_each_round_and_need_all_their_points() -> None:
    (ratio,) = result(axis(), TIMINGS)["ratios"]
    assert ratio["values"] == pytest.approx([1, 1, 2])
    measured = result(axis(), [TIMINGS[0], TIMINGS[1], None])
    assert measured["ratios"] == []
    assert [point["line"] for point in measured["points"]] == ["alone", "alone"]


def test_the_table_has_medians_spreads_and_targets() -> None:
    text = markdown(axis(), result(axis(), TIMINGS))
    assert "| alone | 2 | 400.0 (300.0 to 800.0) | 80 | 9 | 1.00 GB | 2.0 s |" in text
    assert "- second / (first + third): **1.00 (1.00 to 2.00)** (target: at most 0.9)" in text


@pytest.mark.parametrize("bars", [False, True])
def test_figures_are_written(bars: bool, tmp_path: Path) -> None:
    figure = draw("size", axis(bars), result(axis(bars), TIMINGS))
    save(figure, tmp_path / "size")
    text = (tmp_path / "size.svg").read_text()
    assert "alone" in text
    assert "ms a step" in text
    assert (tmp_path / "size.png").stat().st_size > 5000


def test_every_axis_is_a_set_of_runs_that_can_be_built() -> None:
    for name, make in AXES.items():
        measured = make()
        for point in measured.points:
            assert point.config("cpu").data.batch_size == point.batch_size, name
        for ratio in measured.ratios:
            assert max(ratio.point, *ratio.against) < len(measured.points), name


def test_points_beyond_the_memory_are_left_out() -> None:
    huge = Schema.model_validate(SCHEMA.model_dump() | {"tables": {"user": 1 << 40, "item": 20}})
    small = Point("small", 1, SCHEMA, MODEL, 16)
    assert _fitting([Point("huge", 2, huge, MODEL, 16), small, small]) == [False, True, True]
