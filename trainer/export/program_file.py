"""Whether a program of torch.export is one that torch loads without running code that is in the file.

`torch.export.load` trusts a file: it unpickles tensors and sample inputs, evaluates the expressions of sizes and the
guards as Python, writes names into the source of a function, and takes anything in torch for an operator. What
`torch.export.save` writes of a model in plain PyTorch needs none of that: it has numbers as bytes, operators of ATen
and expressions of integers.
"""

import io
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cetnet.trainer.errors import UserError

_MEMBERS = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_NAME = re.compile(r"[\w.+-]*")  # of a value, a parameter, a type, a version
_PYTHON = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
# Which run parts of the same program, that are looked at, too.
_OF_GRAPHS = re.compile(
    r"torch\.ops\.higher_order\.(wrap_with_autocast|wrap_with_set_grad_enabled|scan|cond|while_loop)"
)
_SYMBOLIC = re.compile(r"torch\.sym_(max|min|int|float|not|ite|sum)|math\.(ceil|floor|trunc)")
_WORD = (
    r"\d+(?:\.\d+)?|[suzf]\d+|Symbol|'[suzf]\d+'|positive|nonnegative|integer|True|False|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod"
    r"|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|IntTrueDiv|FloatTrueDiv|ToFloat|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|not|and|or"
    r"|L\['\w+'\]\.(?:size|stride)\(\)\[\d+\]|L\['\w+'\]\.storage_offset\(\)"
)
_EXPRESSION = re.compile(rf"(?:[\s+\-*/%(),<>=!&|~]|(?<!\w)(?:{_WORD})(?!\w))*")
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def check_program(path: Path) -> None:
    """Raise UserError for a `.pt2` file that isn't plainly a model's, or that is damaged."""
    try:
        reader = torch._C.PyTorchFileReader(str(path))  # with which torch will read it
        names = reader.get_all_records()
        found = [f"its member {name}" for name in names if not _MEMBERS.fullmatch(name)]
        for name in _CONFIGS:
            for tensor, of_tensor in json.loads(reader.get_record(name))["config"].items():
                if of_tensor["use_pickle"] is not False or not re.fullmatch(r"\w+", of_tensor["path_name"]):
                    found.append(f"the tensor {tensor!r}, which is pickled")
        torch.load(io.BytesIO(reader.get_record("data/sample_inputs/model.pt")), weights_only=True)
        found += _foreign(json.loads(reader.get_record("models/model.json")), "")
    except pickle.UnpicklingError as error:
        raise _refused(path, "its sample inputs") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        raise UserError(f"{path}: not a program of torch.export, or damaged ({error})") from error
    if found:
        raise _refused(path, found[0])


def _refused(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: {what} may run code when torch loads it, and no exported model has that; get the export from those "
        "who made it"
    )


def _foreign(value: Any, key: str) -> Iterator[str]:
    """What a model's program doesn't have, of a part of its JSON; `key`: where that is."""
    if isinstance(value, list):
        for each in value:
            yield from _foreign(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            if not _NAME.fullmatch(name) or name == "as_custom_obj":
                yield f"{key} {name!r}"
            elif name != "metadata" or key != "nodes":  # remarks on where an operation comes from
                yield from _foreign(each, name)
    elif isinstance(value, str) and not _is_plain(value, key):
        yield f"{key} {value!r}"


def _is_plain(text: str, key: str) -> bool:
    if key in ("target", "as_operator"):
        return any(of.fullmatch(text) for of in (_PYTHON, _SYMBOLIC, _OF_GRAPHS)) or _is_aten(text)
    if key in ("expr_str", "guards_code"):
        return bool(_EXPRESSION.fullmatch(text))
    if key in ("in_spec", "out_spec"):
        return _is_tree(json.loads(text)[1])
    return key in ("as_string", "as_strings") or bool(
        _NAME.fullmatch(text)
    )  # of strings torch writes the repr


def _is_aten(target: str) -> bool:
    """Whether this names an operator of ATen; but none that reads a file."""
    if not target.startswith("torch.ops.aten.") or target.startswith("torch.ops.aten.from_file"):
        return False
    found: Any = torch
    for name in target.split(".")[1:]:
        found = getattr(found, name, None)
    return isinstance(found, torch._ops.OpOverload)


def _is_tree(tree: dict[str, Any]) -> bool:
    """Whether inputs or outputs are in tuples, lists and dictionaries, whose keys are names."""
    keys = json.loads(tree["context"] or "null")
    named = keys is None or (
        isinstance(keys, list) and all(isinstance(key, str) and _NAME.fullmatch(key) for key in keys)
    )
    return tree["type"] in _TREES and named and all(map(_is_tree, tree["children_spec"]))
