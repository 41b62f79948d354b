"""A compiled package computes what the module does, refuses what it would misread, and C++ can call it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import cetnet.trainer.export
from cetnet.trainer.errors import UserError
from cetnet.trainer.export import aoti
from cetnet.trainer.export.aoti import compile_aoti, load_aoti
from cetnet.trainer.export.targets import cpp_compiler
from tests.trainer.export.stand_in import SIZES, Toy, inputs, program

SCORE = Path(cetnet.trainer.export.__file__).parent / "cpp" / "score.cpp"
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"
)


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy().eval()


@pytest.fixture(scope="module")
def package(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    compile_aoti(program(toy), folder / "model.aoti.pt2")
    assert [file.name for file in folder.iterdir()] == ["model.aoti.pt2"], "what the compiler left behind"
    return folder / "model.aoti.pt2"


@pytest.fixture(scope="module")
def compiled(package: Path) -> Callable[..., Tensor]:
    return load_aoti(package, num_runners=2)


@needs_compiler
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("empty", [False, True])
def test_same_probabilities(
    toy: Toy, compiled: Callable[..., Tensor], size: tuple[int, int, int], empty: bool
) -> None:
    given = inputs(*size, empty=empty)
    torch.testing.assert_close(compiled(**given), toy(**given), rtol=0, atol=1e-6)


@needs_compiler
def test_strided_inputs_are_read_as_they_are(toy: Toy, compiled: Callable[..., Tensor]) -> None:
    given = {name: torch.cat([tensor, tensor])[::2] for name, tensor in inputs(4, 2, 3).items()}
    given["sequences"] = given["sequences"].transpose(0, 2).contiguous().transpose(0, 2)
    assert not any(tensor.is_contiguous() for tensor in given.values())
    torch.testing.assert_close(compiled(**given), toy(**given), rtol=0, atol=1e-6)


@needs_compiler
def test_several_threads(toy: Toy, compiled: Callable[..., Tensor]) -> None:
    given = [inputs(rows, 2, 3) for rows in range(1, 60)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda each: compiled(**each), given * 5))
    for each, probabilities in zip(given * 5, found, strict=True):
        torch.testing.assert_close(probabilities, toy(**each), rtol=0, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dense": torch.zeros(2, 2)}, "different numbers of rows: dense 2, categorical 3"),
        ({"dense": torch.zeros(3, 3)}, r"dense: torch.float32 \[1 to any, 2\] is expected, not .* \[3, 3\]"),
        ({"dense": torch.zeros(3, 2).double()}, "not torch.float64"),
        ({"categorical": torch.zeros(3, dtype=torch.int64)}, r"categorical: .* \[3\]"),
        ({"sequences": torch.zeros(3, 2, 7, dtype=torch.int64)}, r"\[1 to any, 2, 1 to 6\] is expected"),
        ({"sequences": torch.zeros(3, 2, 0, dtype=torch.int64)}, r"\[3, 2, 0\]"),
        ({"sequences": torch.zeros(3, 2, 4, dtype=torch.int32)}, "not torch.int32"),
        ({"other": torch.zeros(3, 2)}, "the inputs are dense, categorical, multi_valued, sequences, not"),
    ],
)
def test_inputs_that_would_be_misread(
    compiled: Callable[..., Tensor], changed: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compiled(**{**inputs(3, 2, 4), **changed})


@needs_compiler
def test_nothing_stays_unpacked(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    model = load_aoti(package)
    assert not list(tmp_path.iterdir())
    model(**inputs(3, 2, 3))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"model\.aoti\.pt2: .*unpacked into .*absent .*TMPDIR"):
        load_aoti(package)


@needs_compiler
def test_a_cpu_that_lacks_what_it_was_compiled_for(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(aoti, "cpu_flags", lambda: {"avx", "sse4_2"})
        with pytest.raises(
            UserError, match=r"model\.aoti\.pt2: compiled for CPUs with abm, avx2, .*use model\.pt2"
        ):
            load_aoti(package)


def test_files_that_are_no_package(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("nothing", encoding="utf-8")
    torch.export.save(program(Toy()), tmp_path / "model.pt2")
    for name in ("text.pt2", "model.pt2"):
        with pytest.raises(UserError, match=f"{name}: no compiled model of an export"):
            load_aoti(tmp_path / name)
    with pytest.raises(UserError, match=r"absent\.pt2: cannot be read"):
        load_aoti(tmp_path / "absent.pt2")


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"aoti needs a C\+\+ compiler, and 'no-such-compiler' does not run"):
        compile_aoti(program(Toy()), tmp_path / "model.aoti.pt2")
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_from_cpp(toy: Toy, package: Path, tmp_path: Path) -> None:
    home, score = Path(torch.__file__).parent, tmp_path / "score"
    subprocess.run(
        [
            *(cpp_compiler("this test"), "-std=c++20", f"-I{home}/include", str(SCORE), "-o", str(score)),
            *(f"-L{home}/lib", f"-Wl,-rpath,{home}/lib", "-ltorch", "-ltorch_cpu", "-lc10"),
        ],
        check=True,
    )

    def run(given: dict[str, Tensor]) -> subprocess.CompletedProcess[str]:
        torch.save(list(given.values()), tmp_path / "inputs.pt")
        command = [score, package, tmp_path / "inputs.pt"]
        return subprocess.run(command, capture_output=True, encoding="utf-8")

    for rows in (1, 5):
        given = inputs(rows, 2, 3)
        done = run(given)
        assert done.returncode == 0, done.stderr
        found = np.array([line.split() for line in done.stdout.splitlines()], dtype=float)
        np.testing.assert_allclose(found, toy(**given).detach().numpy(), atol=1e-6)
    done = run({**inputs(5, 2, 3), "dense": torch.zeros(4, 2)})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the inputs have different numbers of rows\n"
    done = run({**inputs(5, 2, 3), "sequences": torch.zeros(5, 2, 0, dtype=torch.int64)})
    assert (done.returncode, done.stdout) == (1, "")
    assert "dim value is too small" in done.stderr


def test_targets_are_checked_without_torch() -> None:
    code = "import sys, cetnet.trainer.export.targets; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
