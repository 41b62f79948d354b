"""Whether an export folder gives, in a clean process and as a stranger would use it, what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

from cetnet.trainer.errors import UserError
from cetnet.trainer.export.program_file import check_program
from cetnet.trainer.export.targets import FILES, Target

TOLERANCE = 1e-6
"""Largest difference of a probability from the trained model's."""

WHY = (
    f", more than {TOLERANCE:g}, so nothing was written; a component that draws random numbers, or depends on other "
    "rows of a batch, can't be exported"
)
"""What is said where it is larger."""

# Finders come before all others: what they refuse isn't there, wherever it is installed.
_WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused}:
            raise ImportError(name + " isn't needed to score with an export")
sys.meta_path.insert(0, Refuse())
"""
_STRANGER = """
import runpy
sys.argv = [{script!r}]
runpy.run_path({script!r}, run_name="__main__")
"""
_SCORER = """
from pathlib import Path
import numpy as np
import pyarrow.parquet as pq
from cetnet.trainer.export.program_file import check_program
from cetnet.trainer.export.scorer import Scorer
folder = Path({folder!r})
examples = pq.read_table(folder / "examples.parquet")
scores = Scorer(folder, {target!r}).score(examples)
differences = [np.abs(scores[name] - examples["expected/" + name].to_numpy()).max() for name in scores]
print("largest difference", max(differences))
"""


def verify_export(folder: Path, target: Target) -> float:
    """Score the examples of a folder with one of its models, in a process that can't import TorchRec.

    `model.pt2` is scored by the folder's own `predict.py`, without anything of this package.

    Returns:
        The largest difference from what the examples expect.

    Raises:
        UserError: that is more than `TOLERANCE`, or the process failed.
    """
    if target == "pt2":
        check_program(folder / FILES[target])
        refused = {"cetnet", "torchrec", "fbgemm_gpu", "pydantic"}
        code = _WITHOUT.format(refused=refused) + _STRANGER.format(script=str(folder / "predict.py"))
    else:
        code = _WITHOUT.format(refused={"torchrec", "fbgemm_gpu"}) + _SCORER.format(
            folder=str(folder), target=target
        )
    process = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    found = re.search(r"largest difference (\S+)$", process.stdout, re.MULTILINE)
    if found is None:
        reason = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(
            f"{target}: the export can't score its own examples in a process of its own: {reason}"
        )
    difference = float(found[1])
    if not difference <= TOLERANCE:
        raise UserError(
            f"{target}: the export's probabilities differ from the trained model's by {difference:.1e}{WHY}"
        )
    return difference
