"""A process stands by to follow a worker that dies."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deepseek.serving.platform import Platform
from deepseek.serving.replica import RestartPolicy
from deepseek.serving.worker_process import WorkerLauncher
from tests.serving.workers import collect, greedy_options, running_platform

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(60)]


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.02)


def _standby_pid(platform: Platform) -> int | None:
    (replica,) = platform.replicas
    return replica.standby_pid


def _worker_pid(platform: Platform) -> int:
    (replica,) = platform.replicas
    assert replica.pid is not None
    return replica.pid


async def test_what_stood_by_follows_a_dead_worker_and_another_stands_by(
    tiny_llama_dir: Path,
) -> None:
    policy = RestartPolicy(stands_by=True)
    async with running_platform({"a": tiny_llama_dir}, policy=policy) as platform:
        before = await collect(platform.generator("a"), [5, 6], greedy_options(20))
        await _until(lambda: _standby_pid(platform) is not None)
        standby = _standby_pid(platform)
        os.kill(_worker_pid(platform), signal.SIGKILL)
        await _until(lambda: not platform.ready)
        await _until(lambda: platform.ready)
        assert _worker_pid(platform) == standby
        assert await collect(platform.generator("a"), [5, 6], greedy_options(20)) == before
        await _until(lambda: _standby_pid(platform) not in (None, standby))
        last = _standby_pid(platform)
    assert last is not None
    assert not psutil.pid_exists(last)


async def test_one_that_died_while_it_stood_by_is_not_missed(tiny_llama_dir: Path) -> None:
    policy = RestartPolicy(stands_by=True)
    async with running_platform({"a": tiny_llama_dir}, policy=policy) as platform:
        await _until(lambda: _standby_pid(platform) is not None)
        standby = _standby_pid(platform)
        assert standby is not None
        os.kill(standby, signal.SIGKILL)
        await _until(lambda: _standby_pid(platform) is None)
        os.kill(_worker_pid(platform), signal.SIGKILL)
        await _until(lambda: not platform.ready)
        await _until(lambda: platform.ready)


async def test_nobody_stands_by_unless_it_is_asked_for(tiny_llama_dir: Path) -> None:
    async with running_platform({"a": tiny_llama_dir}) as platform:
        assert _standby_pid(platform) is None


async def test_one_that_stands_by_ends_with_its_platform() -> None:
    launcher = WorkerLauncher(None, stands_by=True)
    await launcher.stand_by()
    standby = launcher._standby
    assert standby is not None
    assert standby.stdin is not None
    standby.stdin.close()  # as the system does for a platform that was killed
    assert await standby.wait() == 0
