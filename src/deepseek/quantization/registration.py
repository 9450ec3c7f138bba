"""Registers our saved format with transformers, without importing transformers for it.

`import deepseek.quantization` must be enough for `AutoModel.from_pretrained` to know the format,
and must not cost the seconds that transformers takes to import: deployment files are read by
processes that never load it. So where transformers is not loaded yet, registering waits for it.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_MODELS = "transformers.modeling_utils"
"""What every model's module imports; the registry of formats is there once this one is."""
_FORMAT = "deepseek.quantization.pretrained"


def register_with_transformers() -> None:
    """Register the format now, or as soon as transformers loads what models are made of."""
    if _MODELS in sys.modules:
        import_module(_FORMAT)
    elif not any(isinstance(finder, _ModelsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ModelsFinder())


class _ModelsFinder(MetaPathFinder):
    """Sees that module being imported, has it imported as ever, and then registers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODELS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module(_FORMAT)
