"""What is installed: the wheel, the source archive, and what they give to someone without the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from typer.testing import CliRunner

from cetnet.benchmarks.study.definition import Study, runs_of
from cetnet.trainer.cli import app
from cetnet.trainer.errors import UserError
from cetnet.trainer.examples import write_examples
from cetnet.trainer.versions import version_problem
from tests.paths import ROOT
from tests.test_layout import ROOMS

BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2]))
"""


def build(kind: str, source: Path, out: Path) -> Path:
    """The wheel or sdist of a source tree, without a network."""
    out.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-P", "-c", BUILD, kind, out],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return out / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that an image is given, which must suffice."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for line in (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines():
        if line.startswith("!"):
            name = line[1:]
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> ZipFile:
    return ZipFile(build("wheel", source, source / "dist"))


def code(archive: ZipFile) -> set[str]:
    """The files of a wheel but those about it."""
    return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_a_wheel_has_all_files_of_the_rooms_and_nothing_else(wheel: ZipFile) -> None:
    ours = [path for room in (*ROOMS, "configs") for path in (ROOT / room).rglob("*")]
    there = {
        f"cetnet/{path.relative_to(ROOT)}"
        for path in ours
        if path.is_file() and path.suffix not in (".md", ".pyc")
    }
    there |= {"cetnet/__init__.py", "cetnet/__main__.py", "cetnet/py.typed"}
    assert code(wheel) == there
    assert {"cetnet/configs/raw/criteo.yaml", "cetnet/launch/Dockerfile"} <= there


def test_a_wheel_says_what_it_is(wheel: ZipFile) -> None:
    about = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    assert wheel.read(about["LICENSE"]).decode() == (ROOT / "LICENSE").read_text()
    metadata = wheel.read(about["METADATA"]).decode()
    assert "License-Expression: BSD-3-Clause\n" in metadata
    version = next(line for line in metadata.splitlines() if line.startswith("Version: ")).split()[1]
    assert version == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    said = CliRunner().invoke(app, ["--version"]).stdout.splitlines()
    assert said[0] == f"cetnet {version}"
    assert all(f"{name} " in said[1] for name in ("python", "torch", "torchrec", "fbgemm-gpu"))


def test_a_source_archive_makes_the_same_wheel(source: Path, wheel: ZipFile, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert not [path for path in unpacked.rglob("*") if path.is_symlink()]
    with ZipFile(build("wheel", unpacked, tmp_path / "again")) as again:
        assert code(again) == code(wheel)


@pytest.mark.parametrize("file", sorted((ROOT / "constraints").glob("*.txt")), ids=lambda file: file.stem)
def test_a_release_that_is_named_belongs_together(file: Path) -> None:
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    versions = dict(line.split("==") for line in lines)
    assert versions.pop("fbgemm-gpu-cpu") == versions["fbgemm-gpu"]
    assert version_problem(versions) is None
    assert version_problem(versions | {"torch": "2.12.1"}) == "fbgemm-gpu does not belong to this torch"


def test_an_installed_program_brings_its_examples(wheel: ZipFile, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "empty"
    wheel.extractall(site)
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "cetnet", "examples"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "cetnet study benchmarks/studies/demo.yaml" in result.stdout
    assert not [line for line in result.stderr.splitlines() if line.split("|")[-1].strip() == "torch"]
    for name in ("configs", "benchmarks/studies"):
        written = {path.relative_to(folder): path.read_text() for path in (folder / name).rglob("*.yaml")}
        assert written == {path.relative_to(ROOT): path.read_text() for path in (ROOT / name).rglob("*.yaml")}
    for file in (folder / "benchmarks/studies").glob("*.yaml"):
        bases = {run.base for run in runs_of(Study.load(file), file)}
        assert all(base.parent == folder / "configs" and base.exists() for base in bases)


def test_examples_replace_nothing(tmp_path: Path) -> None:
    count = write_examples(tmp_path)
    changed, gone = tmp_path / "configs" / "demo.yaml", tmp_path / "configs" / "ebnerd.yaml"
    gone.unlink()
    assert write_examples(tmp_path) == 1 < count
    gone.unlink()
    changed.write_text("mine: 1\n")
    with pytest.raises(UserError, match=r"demo\.yaml is there already and differs"):
        write_examples(tmp_path)
    assert changed.read_text() == "mine: 1\n"
    assert not gone.exists()
    with pytest.raises(UserError, match="Not a directory"):
        write_examples(changed)
