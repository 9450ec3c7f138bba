"""The peer server, new for each test."""

from collections.abc import Iterator

import pytest

from tests.cli.peer import Peer, running_peer


@pytest.fixture
def peer() -> Iterator[tuple[str, Peer]]:
    """A running server of the OpenAI protocol: its URL, and what it has seen."""
    with running_peer() as running:
        yield running
