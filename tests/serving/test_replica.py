"""A worker that says at its first start that it cannot work as it is set up."""

import pytest

from deepseek.core.errors import Unavailable
from deepseek.core.wire import WorkerSpec
from deepseek.serving.replica import Replica, RestartPolicy, WorkerState

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(60)]


async def test_a_refused_setup_is_not_tried_again() -> None:
    seen: list[object] = []
    spec = WorkerSpec(pool="g", socket_path="", device="cuda:99", models=[])
    replica = Replica(
        spec,
        # Enough patience to outlast the test, were it called for.
        RestartPolicy(max_restarts=100, backoff_s=30.0),
        observer=lambda _, what: seen.append(what),
    )
    with pytest.raises(Unavailable, match="pool 'g': its worker cannot work as it is set up"):
        await replica.start()
    assert seen == [WorkerState.RESTARTING, WorkerState.DOWN]
    await replica.stop(grace_s=0)
