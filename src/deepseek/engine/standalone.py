"""Runs the worker under an interpreter whose environment does not have this package.

`PYTHON -P .../engine/standalone.py`. The package is made importable by itself: the folder it lies
in must not go on the path, since installed it lies beside all other packages of its environment,
and those would hide the interpreter's own.
"""

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the worker; an environment that lacks what every worker needs is told so in one line."""
    import_package()
    try:
        worker = import_module("deepseek.engine.worker")
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"this environment lacks what every worker needs; add it with "
            f"{sys.executable} -m pip install {error.name}"
        ) from error
    status: int = worker.main()
    return status


def import_package() -> None:
    """Import `deepseek` from where this file lies."""
    spec = spec_from_file_location(
        _PACKAGE.name, _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{_PACKAGE} is not a package")
    module = module_from_spec(spec)
    sys.modules[_PACKAGE.name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.exit(main())
