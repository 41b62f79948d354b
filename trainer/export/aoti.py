"""A served model compiled ahead of time: AOTInductor's package, which Python and C++ load.

A package is native code: whoever loads one runs it. It takes its inputs for what it was compiled for, and reads
foreign memory where they are not; so they are described in it, and `load_aoti` checks what it is given.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, NamedTuple, cast
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import AOTICompiledModel
from torch.fx.experimental import _config as fx_config

from cetnet.trainer.errors import UserError
from cetnet.trainer.export.targets import cpp_compiler, without_remarks

_NEEDED, _INPUTS = "CETNET_CPU_FLAGS", "CETNET_INPUTS"
_MODEL = "model"
_CPUINFO = Path("/proc/cpuinfo")
_CPU = "x86-64-v3"
_CPU_FLAGS = "abm avx avx2 bmi1 bmi2 cx16 f16c fma lahf_lm movbe pni popcnt sse4_1 sse4_2 ssse3"
_AVX2_BITS = 256
_ANY_SIZE = 2**48


class Expected(NamedTuple):
    """What an input of a compiled model must be.

    Attributes:
        dtype: as torch prints it.
        sizes: the smallest and the largest that each of its dimensions may have; None if there is no largest.
    """

    dtype: str
    sizes: list[tuple[int, int | None]]

    def check(self, name: str, tensor: Tensor) -> None:
        """Raise ValueError if a tensor isn't such."""
        fits = len(self.sizes) == tensor.dim() and all(
            low <= size and (high is None or size <= high)
            for size, (low, high) in zip(tensor.shape, self.sizes, strict=True)
        )
        if not fits or str(tensor.dtype) != self.dtype:
            sizes = ", ".join(
                str(low) if low == high else f"{low} to {'any' if high is None else high}"
                for low, high in self.sizes
            )
            raise ValueError(
                f"{name}: {self.dtype} [{sizes}] is expected, not {tensor.dtype} {list(tensor.shape)}"
            )


def compile_aoti(program: ExportedProgram, path: Path) -> list[str]:
    """Compile an exported model and write the package; returns the flags of /proc/cpuinfo it needs.

    It runs on any x86-64 with AVX2 (Intel since 2013, AMD since 2015), on as many threads as torch then has; compiled
    for the processor at hand it would not be faster. The flags are in the package too, where `load_aoti` finds them.

    Args:
        program: as `torch.export` gives it, with a batch and lists of any size from 1.
        path: the package, which must end in `.pt2`; half-written if the process is killed.

    Raises:
        UserError: there is no C++ compiler.
    """
    cpp_compiler("the target aoti")
    settings = {
        "cpp.march": _CPU,
        "cpp.simdlen": _AVX2_BITS,
        "scalar_asserts": False,  # they would refuse a batch of one
        "cpp.dynamic_threads": True,
        "aot_inductor.precompile_headers": False,  # for one model it costs more than it saves
        "aot_inductor.metadata": {_NEEDED: _CPU_FLAGS, _INPUTS: json.dumps(_expected(program))},
    }
    # As in the export: what is true of the example's sizes isn't assumed of others.
    any_size = fx_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    folder = TemporaryDirectory(dir=path.parent, prefix=".aoti-")  # inductor's files, the weights among them
    with folder as place, fresh_cache(dir=place), any_size, without_remarks():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    return _CPU_FLAGS.split()


def load_aoti(path: Path, num_runners: int = 1) -> Callable[..., Tensor]:
    """The compiled model, called by the names of its inputs; `num_runners` threads may be in it at once.

    What is returned raises ValueError for inputs that aren't what the model was compiled for. It is unpacked into the
    folder for temporary files, and is gone from there when this returns, whatever then ends the process.

    Raises:
        UserError: this is no package, there is no room to unpack it, or this CPU lacks what it was compiled for.
    """
    # torch's own way of loading starts a C++ compiler, to warn where the CPU is another, and unpacks to where a
    # process that is killed leaves it.
    loader: Any = torch._C._aoti.AOTIModelPackageLoader
    try:
        with ZipFile(path) as package, TemporaryDirectory(prefix="cetnet-aoti-") as folder:
            package.extractall(folder)
            metadata = loader.load_metadata_from_package(folder, _MODEL)
            expected = {name: Expected(*given) for name, given in json.loads(metadata[_INPUTS]).items()}
            if lacking := sorted(set(metadata[_NEEDED].split()) - cpu_flags()):
                raise UserError(
                    f"{path}: compiled for CPUs with {', '.join(lacking)}, which this one lacks; use model.pt2"
                )
            model = AOTICompiledModel(loader(folder, _MODEL, False, num_runners, -1))
    except (BadZipFile, RuntimeError, KeyError) as error:
        what = str(error).partition("\n")[0]
        raise UserError(f"{path}: no compiled model of an export ({what}); export it again") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read, or unpacked into {gettempdir()} ({error.strerror}); TMPDIR may name a folder "
            "with room for it"
        ) from error

    def run(**inputs: Tensor) -> Tensor:
        if inputs.keys() != expected.keys():
            raise ValueError(f"the inputs are {', '.join(expected)}, not {', '.join(inputs)}")
        for name, tensor in inputs.items():
            expected[name].check(name, tensor)
        if len({tensor.shape[0] for tensor in inputs.values()}) > 1:
            rows = ", ".join(f"{name} {tensor.shape[0]}" for name, tensor in inputs.items())
            raise ValueError(f"the inputs have different numbers of rows: {rows}")
        return cast(Tensor, model(**{name: tensor.contiguous() for name, tensor in inputs.items()}))

    return run


def cpu_flags() -> set[str]:
    """What /proc/cpuinfo says that this CPU can do; nothing where it doesn't say."""
    found = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
    return set(found[1].split()) if found else set()


def _expected(program: ExportedProgram) -> dict[str, Expected]:
    """What the inputs of an exported model must be."""
    ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
    expected = {}
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in program.graph_signature.user_inputs:
            sizes: list[tuple[int, int | None]] = []
            for size in node.meta["val"].shape:
                limits = ranges.get(str(size))
                if limits is None:
                    sizes.append((int(size), int(size)))
                else:
                    highest = None if limits.upper > _ANY_SIZE else int(limits.upper)
                    sizes.append((int(limits.lower), highest))
            expected[node.name] = Expected(str(node.meta["val"].dtype), sizes)
    return expected
