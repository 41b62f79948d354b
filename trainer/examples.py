"""The example configurations and studies, which come with the program, as files of one's own."""

from pathlib import Path

import cetnet
from cetnet.trainer.errors import UserError
from cetnet.trainer.files import write_text

FOLDERS = ("configs", "benchmarks/studies")


def write_examples(folder: Path) -> int:
    """Write the examples below a folder, where they lie to each other as in the repository.

    Returns how many files were written: all but those that are there already.

    Raises:
        UserError: one is there with another text, and nothing is written; or the disk refuses.
    """
    package = Path(cetnet.__file__).parent
    examples = [path for name in FOLDERS for path in sorted((package / name).rglob("*.yaml"))]
    missing: dict[Path, str] = {}
    try:
        for example in examples:
            path, text = folder / example.relative_to(package), example.read_text(encoding="utf-8")
            if not path.exists():
                missing[path] = text
            elif path.read_bytes() != text.encode():
                raise UserError(f"{path} is there already and differs from the example; name another folder")
        for path, text in missing.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; name another folder") from None
    return len(missing)
