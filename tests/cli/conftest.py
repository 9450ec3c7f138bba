"""The peer server, new for each test."""

from collections.abc import Iterator

import pytest

from deepseek.weights.child_process import environment_of_own_modules
from tests.cli.peer import Peer, running_peer


@pytest.fixture(scope="session", autouse=True)
def _commands_run_from_this_checkout() -> Iterator[None]:
    """Subprocesses find the package beside these tests, whatever is installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of_own_modules().items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def peer() -> Iterator[tuple[str, Peer]]:
    """A running server of the OpenAI protocol: its URL, and what it has seen."""
    with running_peer() as running:
        yield running
