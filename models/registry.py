"""Names of the components, as they are written in a configuration."""

import importlib

from models.component import Component

COMPONENTS = {
    "dcn": "models.dcn.DCN",
    "dcnv2": "models.dcnv2.DCNv2",
    "deepfm": "models.deepfm.DeepFM",
    "dhen": "models.dhen.DHEN",
    "dien": "models.dien.DIEN",
    "din": "models.din.DIN",
    "dmin": "models.dmin.DMIN",
    "dnn": "models.dnn.DNN",
    "finalmlp": "models.finalmlp.FinalMLP",
    "fm": "models.fm.FM",
    "interformer": "models.interformer.InterFormer",
    "ipnn": "models.ipnn.IPNN",
    "masknet": "models.masknet.MaskNet",
    "wide_deep": "models.wide_deep.WideDeep",
    "wukong": "models.wukong.Wukong",
    "xdeepfm": "models.xdeepfm.XDeepFM",
}


def component_class(kind: str) -> type[Component]:
    """Class of the component called `kind`: a name above, or `package.module.Class` of an installed package.

    Raises:
        ValueError: no such name, or the path does not lead to a `Component` with a `Config`.
    """
    if not isinstance(kind, str) or ("." not in kind and kind not in COMPONENTS):
        raise ValueError(
            f"unknown component kind {kind!r}; known: {', '.join(sorted(COMPONENTS))}, or the dotted path of a class"
        )
    module, name = COMPONENTS.get(kind, kind).rsplit(".", 1)
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"component kind {kind!r} cannot be imported: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, Component) and hasattr(cls, "Config")):
        raise ValueError(
            f"component kind {kind!r} is not a subclass of models.component.Component with a Config"
        )
    return cls
