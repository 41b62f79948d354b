"""`cetnet explain` of a model that knows what decides, against datasets permuted by hand that `predict` scores."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import log_loss

from cetnet.models.schema import Feature, Schema
from cetnet.trainer.cli import main
from cetnet.trainer.processes.launcher import CETNET
from cetnet.trainer.yaml_files import save_yaml
from tests.data import write_split

SCHEMA = Schema(
    label="click",
    group="session",
    tables={"decides": 8, "noise": 8, "event": 12, "event_kind": 4},
    features=(
        Feature(name="decides", kind="categorical"),
        Feature(name="noise", kind="categorical"),
        Feature(name="event", kind="sequence", max_length=4),
        Feature(name="event_kind", kind="sequence", max_length=4),
        Feature(name="matters_a_little", kind="dense"),
    ),
)
ROWS = 600
VALUES = ("∅", "日本", "b", "c", "d", "e", "f")


def rows(count: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    decides, noise, number = rng.integers(1, 8, count), rng.integers(1, 8, count), rng.normal(size=count)
    lengths = rng.integers(0, 5, count)
    event = rng.integers(1, 12, lengths.sum())
    offsets = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())
    log_odds = 2.5 * np.where(decides % 2, 1, -1) + 0.5 * number
    session = pa.array(np.arange(count) // 3, mask=np.arange(count) % 50 == 0)
    return pa.table(
        {
            "click": (rng.random(count) < 1 / (1 + np.exp(-log_odds))).astype(np.int8),
            "session": session,
            "decides": decides,
            "noise": noise,
            "event": pa.ListArray.from_arrays(offsets, pa.array(event)),
            "event_kind": pa.ListArray.from_arrays(offsets, pa.array(event % 4)),
            "matters_a_little": number.astype(np.float32),
        }
    )


def write(path: Path, test: pa.Table) -> None:
    path.mkdir()
    save_yaml(path / "schema.yaml", SCHEMA)
    write_split(path / "train", rows(4000, 1), [[1000] * 4])
    write_split(path / "test", test, [[200] * (test.num_rows // 200)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `data`, and `run`: a CETNet trained on it; `alone`: a single model."""
    folder = tmp_path_factory.mktemp("explain")
    write(folder / "data", rows(ROWS, 2))
    components = {
        "dnn": {"kind": "dnn", "embedding_dim": 4, "hidden_units": [8]},
        "din": {"kind": "din", "embedding_dim": 4, "hidden_units": [8]},
    }
    for name, chosen in (("run", components), ("alone", {"dnn": components["dnn"]})):
        settings = {
            "run_dir": str(folder / name),
            "data": {"path": str(folder / "data"), "batch_size": 50, "lanes": 2},
            "model": {"components": chosen},
            "optimizer": {"dense": {"kind": "adam", "lr": 0.02}},
            "training": {"device": "cpu", "max_steps": 60 if name == "run" else 1},
            "evaluation": {"splits": []},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        assert command("train", folder / f"{name}.yaml") == 0
    (folder / "run/vocabularies").mkdir()
    vocabulary = {"value": VALUES, "id": range(1, 8), "count": [9] * 7}
    pq.write_table(pa.table(vocabulary), folder / "run/vocabularies/decides.parquet")
    return folder


def command(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cetnet", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def explained(folder: Path, out: Path, *options: object) -> dict[str, Any]:
    assert command("explain", folder / "run", folder / "data", "--out", out, *options) == 0
    return json.loads((out / "explain.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return explained(folder, folder / "run/explain", "--by", "decides,event,matters_a_little")


def ne_of(folder: Path, data: Path) -> dict[str, float]:
    out = folder / f"{data.name}.parquet"
    assert command("predict", folder / "run", data, "--out", out) == 0
    predicted = pq.read_table(out)
    label = predicted["label"].to_numpy()
    entropy = log_loss(label, np.full(len(label), label.mean()))
    return {name: log_loss(label, predicted[name].to_numpy()) / entropy for name in ("fused", "dnn", "din")}


def test_what_is_lost_is_what_a_permuted_dataset_loses(folder: Path, found: dict[str, Any]) -> None:
    losses = {(each["permuted"], each["output"]): each for each in found["lost_percent"]}
    base, test = ne_of(folder, folder / "data"), rows(ROWS, 2)
    assert found["ne"] == pytest.approx(base)
    for names in (["decides"], ["event", "event_kind"]):
        order = np.random.default_rng((1, crc32("+".join(names).encode()))).permutation(ROWS)
        permuted = test
        for name in names:
            permuted = permuted.set_column(permuted.column_names.index(name), name, test[name].take(order))
        write(folder / names[0], permuted)
        for output, ne in ne_of(folder, folder / names[0]).items():
            assert losses["+".join(names), output]["percent"] == pytest.approx(
                100 * (ne / base[output] - 1), abs=1e-3
            )


def test_what_decides_comes_first_and_noise_is_marked(found: dict[str, Any]) -> None:
    order = list(dict.fromkeys(each["permuted"] for each in found["lost_percent"]))
    assert order[:2] == ["decides", "matters_a_little"]
    assert set(order[2:]) == {"noise", "event+event_kind"}
    for each in found["lost_percent"]:
        assert each["low"] <= each["percent"] <= each["high"]
        assert each["interval_holds_0"] == (each["low"] <= 0 <= each["high"])
        if each["permuted"] == "decides":
            assert each["low"] > 30
        if each["permuted"] == "noise":
            assert abs(each["percent"]) < 2
    assert found["rows"] == ROWS
    assert found["units"] == ROWS // 3 + ROWS // 50  # rows without a group are units of their own


def test_who_decided(folder: Path, found: dict[str, Any]) -> None:
    ne_of(folder, folder / "data")
    predicted = pq.read_table(folder / "data.parquet")
    p = np.stack([predicted[name].to_numpy() for name in ("dnn", "din")])
    certainty = np.exp(p * np.log(p) + (1 - p) * np.log1p(-p))
    weight = certainty / certainty.sum(axis=0)
    decides = rows(ROWS, 2)["decides"].to_numpy()
    whole, *others = found["slices"]
    assert whole["weight"] == pytest.approx({"dnn": weight[0].mean(), "din": weight[1].mean()}, abs=1e-6)
    assert whole["decides"]["dnn"] == pytest.approx((weight[0] > weight[1]).mean())
    assert whole["ne"] == pytest.approx(found["ne"])
    by_value = {each["value"]: each for each in others if each["column"] == "decides"}
    assert set(by_value) == set(VALUES)
    for id_, value in enumerate(VALUES, 1):
        inside = decides == id_
        assert by_value[value]["rows"] == inside.sum()
        assert by_value[value]["weight"]["din"] == pytest.approx(weight[1][inside].mean(), abs=1e-6)
    lengths = [each for each in others if each["column"] == "event"]
    assert sum(each["rows"] for each in lengths) == ROWS
    assert lengths[0]["value"] == "length 0"
    assert len([each for each in others if each["column"] == "matters_a_little"]) == 5
    halves = {each["value"]: each["rows"] for each in others if not each["column"]}
    assert halves == {
        "dnn decides": (weight[0] > weight[1]).sum(),
        "din decides": (weight[0] <= weight[1]).sum(),
    }


def test_two_processes_some_features_and_rows(folder: Path, tmp_path: Path) -> None:
    options = ["--features", "noise,decides+event", "--rows", 300, "--repeats", 2, "--seed", 4]
    one = explained(folder, tmp_path / "1", *options)
    asked = ["explain", folder / "run", folder / "data", "--out", tmp_path / "2", *options, "--nproc", 2]
    subprocess.run([*CETNET, *map(str, asked)], check=True)
    two = json.loads((tmp_path / "2/explain.json").read_text(encoding="utf-8"))
    assert [each["permuted"] for each in one["lost_percent"]][::3] == ["decides+event+event_kind", "noise"]
    assert one["rows"] == 300
    for each, other in zip(one["lost_percent"], two["lost_percent"], strict=True):
        assert [other[key] for key in ("percent", "low", "high")] == pytest.approx(
            [each[key] for key in ("percent", "low", "high")], abs=1e-3
        )
    assert sorted(path.name for path in (tmp_path / "2").iterdir()) == [
        *("decided.png", "explain.json", "importance.png")
    ]


def test_a_single_model_has_no_weights(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command("explain", folder / "alone", folder / "data", "--rows", 100) == 0
    assert "No weights of components: a single component decides alone." in capfd.readouterr().out
    assert sorted(path.name for path in (folder / "alone/explain").iterdir()) == [
        "explain.json",
        "importance.png",
    ]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--features", "prize"], "--features prize: no feature 'prize'; there are decides, noise"),
        (["--by", "prize"], "--by: no feature 'prize'; there are decides, noise"),
        (["--out", "{folder}/data/schema.yaml"], "schema.yaml"),
        (["--split", "one_label"], "have no NE: every row that counts has the label 1"),
    ],
)
def test_refusals(
    options: list[str], complaint: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clicks = rows(20, 3)
    if not (folder / "data/one_label").exists():
        ones = clicks.set_column(0, "click", pa.array([1] * 20, pa.int8()))
        write_split(folder / "data/one_label", ones, [[20]])
    given = [option.format(folder=folder) for option in options]
    assert command("explain", folder / "run", folder / "data", *given) == 2
    assert complaint in capfd.readouterr().err.strip().splitlines()[-1]
