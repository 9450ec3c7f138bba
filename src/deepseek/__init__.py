"""deepseek: serve many models for many teams from one YAML file, through the OpenAI API.

Importing the package loads nothing heavy; open `deepseek.app` first, its docstring tells the life
of a request. `deepseek.load_model` gives a model to work with in Python.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

load_model: Callable[..., Any]
"""`deepseek.quantization.loader.load_model`, imported on use: torch and transformers take seconds,
which most of the package does without."""

__all__ = ["__version__", "load_model"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "load_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("deepseek.quantization.loader").load_model
