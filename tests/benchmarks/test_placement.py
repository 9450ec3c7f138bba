"""Servers are kept on their cores, and one that strays is found out."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from engine_measures.placement import one_core, require_placed, running_on
from serving_measures.platform import MeasurementFailed

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="a placement needs two cores"
)
STRAY = """
import os, sys, threading
ready = threading.Event()
def stray():
    os.sched_setaffinity(0, {int(sys.argv[1])})
    ready.set()
    threading.Event().wait()
threading.Thread(target=stray, daemon=True).start()
ready.wait()
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def child(script: str, *arguments: str) -> Iterator[None]:
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_processes_started_on_cores_stay_there_and_the_parent_returns() -> None:
    placement, before = one_core(), os.sched_getaffinity(0)
    assert placement.server_cores.isdisjoint(placement.client_cores)
    with running_on(placement.server_cores):
        started = child("print('ready', flush=True); input()")
        with started:
            require_placed(placement.server_cores)
            with pytest.raises(MeasurementFailed, match="outside"):
                require_placed(placement.client_cores)
    assert os.sched_getaffinity(0) == before


def test_a_thread_that_leaves_its_cores_fails_the_measurement() -> None:
    placement = one_core()
    (elsewhere,) = placement.client_cores
    with (
        running_on(placement.server_cores),
        child(STRAY, str(elsewhere)),
        pytest.raises(MeasurementFailed, match=rf"cores \[{elsewhere}\]"),
    ):
        require_placed(placement.server_cores)
