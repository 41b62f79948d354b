"""Names of the components, as they are written in a configuration."""

import ast
import importlib
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cetnet.models.component import Component

COMPONENTS = {
    "dcn": "cetnet.models.dcn.DCN",
    "dcnv2": "cetnet.models.dcnv2.DCNv2",
    "deepfm": "cetnet.models.deepfm.DeepFM",
    "dhen": "cetnet.models.dhen.DHEN",
    "dien": "cetnet.models.dien.DIEN",
    "din": "cetnet.models.din.DIN",
    "dmin": "cetnet.models.dmin.DMIN",
    "dnn": "cetnet.models.dnn.DNN",
    "finalmlp": "cetnet.models.finalmlp.FinalMLP",
    "fm": "cetnet.models.fm.FM",
    "interformer": "cetnet.models.interformer.InterFormer",
    "ipnn": "cetnet.models.ipnn.IPNN",
    "masknet": "cetnet.models.masknet.MaskNet",
    "wide_deep": "cetnet.models.wide_deep.WideDeep",
    "wukong": "cetnet.models.wukong.Wukong",
    "xdeepfm": "cetnet.models.xdeepfm.XDeepFM",
}


def component_path(kind: str) -> str:
    """Dotted path of the class of the component called `kind`, which is not imported.

    Raises:
        ValueError: no such name, and no dotted path.
    """
    if not isinstance(kind, str) or ("." not in kind and kind not in COMPONENTS):
        raise ValueError(
            f"unknown component kind {kind!r}; known: {', '.join(sorted(COMPONENTS))}, or the dotted path of a class"
        )
    return COMPONENTS.get(kind, kind)


def component_class(kind: str) -> type["Component"]:
    """Class of the component called `kind`: a name above, or `package.module.Class` of an installed package.

    Raises:
        ValueError: no such name, or the path does not lead to a `Component` with a `Config`.
    """
    from cetnet.models.component import Component  # torch, for which the names need not wait

    module, name = component_path(kind).rsplit(".", 1)
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"component kind {kind!r} cannot be imported: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, Component) and hasattr(cls, "Config")):
        raise ValueError(
            f"component kind {kind!r} is not a subclass of cetnet.models.component.Component with a Config"
        )
    return cls


def component_summary(kind: str) -> str:
    """First line of the docstring of a component that is registered here, whose module is read, not imported."""
    _, module, name = COMPONENTS[kind].rsplit(".", 2)
    source = resources.files("cetnet.models").joinpath(f"{module}.py").read_text(encoding="utf-8")
    definition = next(
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name
    )
    return (ast.get_docstring(definition) or "").partition("\n")[0]
