"""Singular values of tables from checkpoints, and what is made of them, against numpy's SVD of the whole table."""

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader

from cetnet.benchmarks.study.definition import Run, Study, runs_of
from cetnet.benchmarks.study.report.spectra import (
    effective_rank,
    gram_matrix,
    information_abundance,
    read_spectra,
    spectra_of,
    summarize,
    wide_enough,
)
from cetnet.benchmarks.study.run import report_study
from cetnet.trainer.checkpoint.checkpoints import Checkpoints
from cetnet.trainer.config import RunConfig
from cetnet.trainer.console import PlainConsole
from cetnet.trainer.errors import UserError
from cetnet.trainer.processes.distributed import Processes, process_group
from cetnet.trainer.session import build_session
from tests.benchmarks.study.fake_trainer import write_run
from tests.data import make_schema
from tests.processes import run_settings


@pytest.mark.parametrize(
    ("sigma", "abundance", "rank"),
    [
        ([1, 1, 1, 1], 4, 4),  # isotropic
        ([5, 0, 0], 1, 1),  # collapsed
        ([2, 1, 1], 2, 2**1.5),  # shares 1/2, 1/4, 1/4: an entropy of 1.5 bits
    ],
)
def test_abundance_and_rank_by_hand(sigma: list[float], abundance: float, rank: float) -> None:
    for scale in (1, 1e-3):
        assert information_abundance(scale * np.array(sigma)) == pytest.approx(abundance)
        assert effective_rank(scale * np.array(sigma)) == pytest.approx(rank)


def test_a_table_of_zeros_has_neither() -> None:
    assert np.isnan(information_abundance(np.zeros(3)))
    assert np.isnan(effective_rank(np.zeros(3)))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 8))
def test_gram_matrix_of_blocks(sizes: list[int], width: int) -> None:
    rows = np.random.default_rng(sum(sizes)).normal(size=(sum(sizes), width))
    blocks = torch.split(torch.tensor(rows), sizes)
    np.testing.assert_allclose(gram_matrix(blocks), rows[1:].T @ rows[1:], atol=1e-12)


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with process_group("cpu") as processes:
        yield processes


@pytest.fixture(scope="module")
def checkpoint(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two copies of a component, the tables of the second dense, and one that reads sequences."""
    folder = tmp_path_factory.mktemp("run")
    components = {
        "dcnv2": {
            "kind": "dcnv2",
            "embedding_dim": 8,
            "hidden_units": [8],
            "copies": 2,
            "embedding_std": 0.1,
        },
        "din": {"kind": "din", "embedding_dim": 4, "hidden_units": [8]},
        "fm": {"kind": "fm", "embedding_dim": 4},  # has one-dimensional tables beside its embeddings
    }
    settings = run_settings(
        Path("unread"),
        Path("unwritten"),
        model={"components": components},
        sharding={"dense_tables": ["dcnv2_2__*"]},
    )
    session = build_session(RunConfig.model_validate(settings), make_schema(), processes)
    session.optimizer.init_state()
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    checkpoints.save("step-000000001", session.model, session.optimizer, {"progress": {}, "ne": {}})
    checkpoints.close()
    return folder / "checkpoints" / "step-000000001"


def whole_tables(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint whose name ends like a table's, read whole with torch's own means."""
    sizes = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {key: torch.zeros(item.size) for key, item in sizes.items() if "__" in key and "model." in key}
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    return {key.split(".")[-2]: tensor.double().numpy() for key, tensor in state.items()}


def test_spectra_are_those_of_the_whole_tables(checkpoint: Path) -> None:
    tables = whole_tables(checkpoint)
    spectra = list(spectra_of(checkpoint))
    components = ["dcnv2_1", "dcnv2_2", "din", "fm"]
    names = ["user", "item", "tag", "query"]
    assert sorted((one.owner, one.table) for one in spectra) == sorted(
        (owner, name) for owner in ["", *components] for name in names
    )
    for one in spectra:
        owners = [one.owner] if one.owner else components
        whole = np.concatenate([tables[f"{owner}__{one.table}"] for owner in owners], axis=1)[1:]
        assert (one.values, one.width) == whole.shape
        expected = np.linalg.svd(whole, compute_uv=False)
        np.testing.assert_allclose(one.singular_values, expected, atol=1e-7 * expected[0])
        assert one.information_abundance == pytest.approx(expected.sum() / expected[0], rel=1e-6)
    assert all(one.width == 24 for one in spectra if not one.owner)


def test_the_cache_is_of_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seed1"
    shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name)
    run = Run("a", 1, folder, Path("base"), [], 1, {})
    first = read_spectra(run)
    assert first
    # Now there is nothing to read but the cache.
    damaged = folder / "checkpoints" / checkpoint.name / ".metadata"
    content = damaged.read_bytes()
    time = damaged.stat().st_mtime_ns
    damaged.write_bytes(b"?")
    os.utime(damaged, ns=(time, time))
    assert read_spectra(run) == first
    (folder / "checkpoints" / checkpoint.name).rename(folder / "checkpoints" / "step-000000002")
    with pytest.raises(
        UserError, match=r"step-000000002: damaged \(\.metadata has 1 of .* bytes\); there is"
    ):
        read_spectra(run)
    (folder / "checkpoints" / "step-000000002" / ".metadata").write_bytes(content)
    second = read_spectra(run)
    assert second
    assert second.checkpoint == "step-000000002"
    shutil.rmtree(folder)
    assert read_spectra(run) == second
    (tmp_path / "seed1.spectra.json").write_text("{")
    with pytest.raises(UserError, match=r"seed1\.spectra\.json: not readable; remove it"):
        read_spectra(run)
    (tmp_path / "seed1.spectra.json").unlink()
    assert read_spectra(run) is None


def test_the_cache_is_of_that_very_run(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seed1"
    shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name)
    (folder / "result.json").write_text("{}")
    run = Run("a", 1, folder, Path("base"), [], 1, {})
    first = read_spectra(run)
    assert first
    # A repeated run has a checkpoint of the same name, written later.
    later = first.written + 10**9
    os.utime(folder / "checkpoints" / checkpoint.name / ".metadata", ns=(later, later))
    second = read_spectra(run)
    assert second
    assert (second.written, second.spectra) == (later, first.spectra)
    (folder / "checkpoints" / checkpoint.name / ".metadata").unlink()
    with pytest.raises(UserError, match=r"step-000000001: damaged \(\.metadata is missing\); remove it"):
        read_spectra(run)
    shutil.rmtree(folder / "checkpoints")
    assert read_spectra(run) == second
    newer = (tmp_path / "seed1.spectra.json").stat().st_mtime_ns + 10**9
    os.utime(folder / "result.json", ns=(newer, newer))
    assert read_spectra(run) is None


@pytest.mark.parametrize("size", [None, 0, 100])
def test_damaged_shards_are_told_in_a_line(checkpoint: Path, tmp_path: Path, size: int | None) -> None:
    copy = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, copy)
    for shard in copy.glob("*.distcp"):
        if size is None:
            shard.unlink()
        else:
            os.truncate(shard, size)
    with pytest.raises(
        UserError, match=r"step-000000001: damaged \(__0_0\.distcp .*\); there is none before"
    ) as error:
        list(spectra_of(copy))
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)


def test_report_has_the_tables(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = {
        "name": "small",
        "base": "base.yaml",
        "nproc": 1,
        "seeds": [1],
        "baseline": "a",
        "variants": {"a": {}, "b": {}},
        "embeddings": True,
    }
    Path("base.yaml").write_text("{}", encoding="utf-8")
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    for run in runs_of(Study.load(Path("study.yaml")), Path("study.yaml")):
        run.write_settings()
        (run.folder / "predictions").mkdir(parents=True)
        (run.folder / "config.yaml").write_text("{}")
        write_run(run.folder, seed=1, skill=0.5, components=["solo"], truth=False, data_seed=0)
        shutil.copytree(checkpoint, run.folder / "checkpoints" / checkpoint.name)
        spectra = read_spectra(run)
    report_study(Path("study.yaml"), console=PlainConsole(file=io.StringIO()))
    report = Path("runs/small/report.md").read_text(encoding="utf-8")
    assert spectra
    tables = wide_enough([spectra])
    assert sorted(tables) == ["item", "query", "user"]  # `tag` has 11 values and 24 numbers for each
    summary = summarize(spectra, tables)
    ranks = [spectra.side_by_side[table].effective_rank for table in tables]
    assert summary.rank == pytest.approx(np.mean(ranks))
    assert (
        f"| a | 4 | 24 | {summary.abundance:.2f} | {100 * summary.abundance / 24:.1f} | {summary.rank:.2f} |"
        in report
    )
    assert "(3 of 4: `" in report
    assert "All runs were made in the same environment." in report
    lines = Path("runs/small/embeddings.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 2 * 20
    assert lines[0] == "variant,seed,component,table,values,width,information abundance,effective rank"
