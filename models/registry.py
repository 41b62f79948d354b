"""Names of the components, as they are written in a configuration."""

import importlib

from models.component import Component

COMPONENTS = {
    "dcnv2": "models.dcnv2.DCNv2",
    "dhen": "models.dhen.DHEN",
    "interformer": "models.interformer.InterFormer",
}


def component_class(kind: str) -> type[Component]:
    """Class of the component called `kind`; raises ValueError with the known names."""
    if not isinstance(kind, str) or kind not in COMPONENTS:  # a configuration may hold anything
        raise ValueError(f"unknown component kind {kind!r}; known: {', '.join(sorted(COMPONENTS))}")
    module, name = COMPONENTS[kind].rsplit(".", 1)
    cls: type[Component] = getattr(importlib.import_module(module), name)
    return cls
