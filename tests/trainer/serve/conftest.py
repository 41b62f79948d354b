"""Exports of tiny models, and a server of one that the tests share."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cetnet.benchmarks.serving.server_process import Running, started
from cetnet.trainer.encoder.encode import Encoder
from tests.trainer.export.toy import OUTPUTS, Toy, toy_program, write_about, write_toy


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "export"
    folder.mkdir()
    write_toy(folder)
    return folder


@pytest.fixture(scope="session")
def other_export(export: Path) -> Path:
    """Another model of the same columns."""
    folder = export.with_name("other")
    shutil.copytree(export, folder)
    torch.manual_seed(2)
    model = Toy().eval()
    torch.export.save(toy_program(model), folder / "model.pt2")
    examples = pq.read_table(folder / "examples.parquet")
    inputs = {name: torch.from_numpy(array) for name, array in Encoder(folder).encode(examples).items()}
    with torch.no_grad():
        for name, column in zip(OUTPUTS, model(**inputs).numpy(), strict=True):
            examples = examples.drop_columns([f"expected/{name}"])
            examples = examples.append_column(f"expected/{name}", pa.array(column))
    pq.write_table(examples, folder / "examples.parquet")
    write_about(folder)
    return folder


def put(export: Path, place: Path) -> None:
    """Have an export in a place, whole at once, as `cetnet export --overwrite` does."""
    aside = place.with_name(f".{place.name}.new")
    shutil.copytree(export, aside, copy_function=os.link)
    if place.exists():
        old = place.with_name(f".{place.name}.old")
        place.rename(old)
        aside.rename(place)
        shutil.rmtree(old)
    else:
        aside.rename(place)


@pytest.fixture(scope="module")
def server(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Of a folder with one version, v1."""
    folder = tmp_path_factory.mktemp("served")
    put(export, folder / "v1")
    with started(folder, "--max-request-rows", "1000", "--max-request-mib", "1") as running:
        running.folder = folder  # type: ignore[attr-defined]
        yield running


def examples_of(export: Path) -> list[dict]:
    """Rows of the examples, with what is right for them."""
    return pq.read_table(export / "examples.parquet").to_pylist()


def columns_of(export: Path) -> dict[str, bool]:
    """The raw columns, and whether they hold lists."""
    request = json.loads((export / "request.json").read_text(encoding="utf-8"))
    return {entry["column"]: entry["kind"] in ("multi_valued", "sequence") for entry in request["columns"]}
