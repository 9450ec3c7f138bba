"""The key sources by name; entry-point group `deepseek.key_sources`."""

from typing import Any

from deepseek.core.plugins import PluginRegistry
from deepseek.weights.store.keys.base import KeySource

_REGISTRY = PluginRegistry(
    group="deepseek.key_sources",
    setting="models.key",
    built_in={
        "command": "deepseek.weights.store.keys.sources:CommandKey",
        "env": "deepseek.weights.store.keys.sources:EnvironmentKey",
        "file": "deepseek.weights.store.keys.sources:FileKey",
    },
)


def key_source_names() -> list[str]:
    """Return the names that `make_key_source` knows, built-in ones and plug-ins."""
    return _REGISTRY.names()


def make_key_source(name: str, argument: Any) -> KeySource:
    """Return a source of this name for what the settings give it; touches no key.

    Raises `ConfigurationError` for an unknown name and for an argument that makes no sense.
    """
    source: KeySource = _REGISTRY.find(name)(argument)
    return source
