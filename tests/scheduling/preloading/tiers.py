"""Models, tiers and a loader for tests: loads that take no time, checked one by one."""

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import strategies as st

from deepseek.scheduling.preloading.base import (
    Action,
    Cancel,
    Evict,
    Load,
    ModelState,
    PreloadingPolicy,
    Residency,
    Tier,
)

MOST_ACTIONS = 200
"""More than any few models need, in any order."""

HOST, DEVICE = frozenset({Tier.HOST}), frozenset({Tier.DEVICE})
BOTH = HOST | DEVICE


def model(
    name: str,
    size: int = 10,
    *,
    held: frozenset[Tier] = HOST,
    is_pinned: bool = False,
    is_in_use: bool = False,
    waiting_since_s: float | None = None,
    may_preload: bool = True,
) -> ModelState:
    return ModelState(
        name=name,
        host_bytes=size,
        device_bytes=size,
        host_s=size / 10,
        device_s=size / 100,
        held=held,
        is_pinned=is_pinned,
        is_in_use=is_in_use,
        waiting_since_s=waiting_since_s,
        may_preload=may_preload,
    )


def tiers(*models: ModelState, device: int = 20, host: int | None = 1000) -> Residency:
    budgets = {Tier.DEVICE: device} | ({} if host is None else {Tier.HOST: host})
    return Residency(models=models, budgets=budgets)


def with_model(residency: Residency, name: str, **changes: object) -> Residency:
    models = [
        replace(state, **changes) if state.name == name else state for state in residency.models
    ]
    return replace(residency, models=models)


def after(residency: Residency, action: Action) -> Residency:
    """Return the tiers once an action is done, all at once."""
    state = residency.model(action.model)
    match action:
        case Load():
            filled = {action.tier} | ({Tier.HOST} if action.fills_host else set())
            return with_model(residency, state.name, held=state.held | filled)
        case Evict():
            return with_model(residency, state.name, held=state.held - {action.tier})
        case Cancel():
            return replace(residency, in_flight=None)


def settle(
    policy: PreloadingPolicy, residency: Residency, *, now_s: float
) -> Iterator[tuple[Residency, Action]]:
    """Do what the policy says until it says None; yield the tiers before each action."""
    for _ in range(MOST_ACTIONS):
        action = policy.next_action(residency, now_s=now_s)
        if action is None:
            return
        yield residency, action
        residency = after(residency, action)
    raise AssertionError("the policy comes to no end")


def settled(policy: PreloadingPolicy, residency: Residency, *, now_s: float) -> Residency:
    for before, action in settle(policy, residency, now_s=now_s):
        residency = after(before, action)
    return residency


@st.composite
def any_tiers(draw: st.DrawFn) -> Residency:
    """Any models in tiers that hold no more than their budgets."""
    names = "abcdef"[: draw(st.integers(1, 6))]
    held = st.sampled_from((frozenset(), HOST, DEVICE, BOTH))
    has_host = draw(st.booleans())
    models = []
    for name in names:
        state = model(
            name,
            draw(st.integers(0, 20)),
            held=draw(held) if has_host else draw(held) - HOST,
            is_pinned=draw(st.booleans()) and draw(st.booleans()),
            is_in_use=draw(st.booleans()),
            waiting_since_s=draw(st.none() | st.floats(0, 10)),
            may_preload=draw(st.sampled_from((True, True, False))),
        )
        models.append(replace(state, device_bytes=draw(st.integers(0, 20))))
    budgets = {
        tier: used(models, tier) + draw(st.integers(0, 40))
        for tier in (Tier.DEVICE, Tier.HOST)
        if has_host or tier is Tier.DEVICE
    }
    return Residency(
        models=models, budgets=budgets, may_preload=draw(st.sampled_from((True, True, False)))
    )


def used(models: list[ModelState], tier: Tier) -> int:
    return sum(state.bytes_in(tier) for state in models if tier in state.held)


requests = st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0.001, 100)), max_size=30)
"""Models that were asked for, and the pauses between."""


def observed(policy: PreloadingPolicy, asked: list[tuple[str, float]]) -> float:
    """Tell a policy of requests; return the time of the last one."""
    now_s = 0.0
    for name, pause_s in asked:
        now_s += pause_s
        policy.observe(name, now_s=now_s)
    return now_s
