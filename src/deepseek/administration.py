"""What an operator may change of a deployment file while it is served, and the doing of it."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deepseek.core.errors import (
    ConfigurationError,
    DeploymentFileError,
    InvalidRequest,
    RequestTimeout,
)
from deepseek.core.settings import Settings
from deepseek.deployment_file import DeploymentFile, parse_deployment
from deepseek.serving.base import SettingChange
from deepseek.serving.kept_decisions import KeptDecision
from deepseek.serving.platform import Platform
from deepseek.serving.settings import LIVE_SETTINGS, ModelSettings

logger = logging.getLogger(__name__)

APPLY_TIMEOUT_S = 30.0
"""Workers take new settings between two steps; who has to wait longer is told so."""


class LiveDeployment:
    """Implements `deepseek.serving.base.Administration`."""

    def __init__(self, file: DeploymentFile, platform: Platform) -> None:
        """`file`: what `platform` serves, as it is written, relative paths and all."""
        self._file = file
        self._platform = platform
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[list[SettingChange]]] = set()

    async def apply(self, deployment: Any) -> list[SettingChange]:
        """Take another file's live settings; see `deepseek.serving.base.Administration`."""
        try:
            wanted = parse_deployment(deployment)
        except DeploymentFileError as error:
            raise InvalidRequest(error.message) from None
        task = asyncio.create_task(self._apply(wanted), name="apply")
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(APPLY_TIMEOUT_S):
                # A caller that left half-way must not leave some workers changed.
                return await asyncio.shield(task)
        except TimeoutError:
            raise RequestTimeout(
                f"the workers did not take the settings within {APPLY_TIMEOUT_S:g} s; it goes on"
            ) from None

    def decisions(self, model: str) -> Sequence[KeptDecision]:
        """Return the last decisions; see `deepseek.serving.base.Administration`."""
        return self._platform.decisions(model)

    def _ended(self, task: "asyncio.Task[list[SettingChange]]") -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a deployment file was not applied: %s", error)

    async def _apply(self, wanted: DeploymentFile) -> list[SettingChange]:
        async with self._turn:
            if fixed := list(fixed_differences(self._file, wanted)):
                raise InvalidRequest("\n".join(fixed))
            changes = [
                change
                for name, settings in wanted.models.items()
                for change in _live_changes(name, self._file.models[name], settings)
            ]
            changed = {change.model: wanted.models[change.model] for change in changes}
            try:
                await self._platform.reconfigure(changed)
            except ConfigurationError as error:
                raise InvalidRequest(error.message, param=error.param) from error
            self._file = wanted
            return changes


def fixed_differences(served: DeploymentFile, wanted: DeploymentFile) -> Iterator[str]:
    """Yield, in words with the remedy, every difference that only a new start can bring about."""
    for name in wanted.models:
        if name not in served.models:
            yield f"models.{name}: is not served; restart `deepseek serve` to add a model"
    for name in served.models:
        if name not in wanted.models:
            yield f"models.{name}: is missing here; restart `deepseek serve` to remove a model"
    pairs: list[tuple[str, Settings, Settings]] = [
        (f"models.{name}", served.models[name], wanted.models[name])
        for name in served.models
        if name in wanted.models
    ]
    pools = wanted.pool_settings()
    pairs += [
        (f"pools.{name}", settings, pools[name])
        for name, settings in served.pool_settings().items()
        if name in pools
    ]
    pairs.append(("gateway", served.gateway, wanted.gateway))
    for place, before, after in pairs:
        for field in type(before).model_fields:
            if isinstance(before, ModelSettings) and field in LIVE_SETTINGS:
                continue
            old, new = getattr(before, field), getattr(after, field)
            if old != new:
                yield (
                    f"{place}.{field}: cannot change from {_shown(old)} to {_shown(new)} while it "
                    "serves; restart `deepseek serve` for that"
                )


def _live_changes(
    name: str, before: ModelSettings, after: ModelSettings
) -> Iterator[SettingChange]:
    old, new = (
        dict(_flat(settings.model_dump(include=set(LIVE_SETTINGS)))) for settings in (before, after)
    )
    for setting in old | new:  # a section may be left out of either
        was, is_now = old.get(setting), new.get(setting)
        if was != is_now:
            yield SettingChange(model=name, setting=setting, before=was, after=is_now)


def _shown(value: Any) -> str:
    """Return a value as a file spells it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "its default" if value is None else str(value)


def _flat(section: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
