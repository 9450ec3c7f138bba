"""How much load is full load, and workloads at a part of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from deepseek.core.qos import QoS
from deepseek.scheduling.simulation.requests import Arrival
from deepseek.scheduling.simulation.simulator import Meter, ModelSetup, simulate


def capacity(setup: ModelSetup, *, make_meter: Callable[[float], Meter]) -> float:
    """Return the requests per second that the device serves while it has a backlog of them.

    All arrivals come at once, are batched greedily and have no deadlines.
    """
    backlog = replace(
        setup,
        qos=QoS(policy="greedy", max_batch_size=setup.qos.max_batch_size),
        arrivals=[replace(arrival, at_s=0.0) for arrival in setup.arrivals],
        times=replace(setup.times, noise=0.0),
    )
    return len(setup.arrivals) / simulate([backlog], make_meter=make_meter).duration_s


def at_rate(arrivals: Sequence[Arrival], per_second: float) -> list[Arrival]:
    """Return the arrivals at another mean rate, the first at zero; bursts stay bursts."""
    first_s = min(arrival.at_s for arrival in arrivals)
    span_s = max(arrival.at_s for arrival in arrivals) - first_s
    factor = len(arrivals) / per_second / span_s if span_s > 0 else 0.0
    return [replace(a, at_s=(a.at_s - first_s) * factor) for a in arrivals]
