"""Names of the components, as they are written in a configuration."""

import importlib

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
