"""Finds a plug-in by its name: a built-in one, imported on use, or one of another package."""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from deepseek.core.errors import ConfigurationError


class PluginRegistry:
    """The names of one kind of plug-in."""

    def __init__(self, *, group: str, setting: str, built_in: Mapping[str, str]) -> None:
        """`built_in`: names to `module:Class`; `group`: the entry points of other packages."""
        self._group = group
        self._setting = setting
        self._built_in = dict(built_in)

    def names(self) -> list[str]:
        """Return every name that `find` knows."""
        plugged = {point.name for point in entry_points(group=self._group)}
        return sorted(plugged | set(self._built_in))

    def find(self, name: str) -> Any:
        """Return the class of this name; raises `ConfigurationError` listing the known ones."""
        if name in self._built_in:
            module, _, attribute = self._built_in[name].partition(":")
            return getattr(import_module(module), attribute)
        for point in entry_points(group=self._group):
            if point.name == name:
                return point.load()
        raise ConfigurationError(
            f"{self._setting}: {name!r} is unknown; known: {', '.join(self.names())}",
            param=self._setting.rpartition(".")[2],
        )
