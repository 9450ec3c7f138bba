"""The simulated worker: virtual time, promises, disturbances, several models."""

import itertools
import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.core.errors import ConfigurationError
from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import LateRequests, Priority, QoS
from deepseek.scheduling.batching.base import Demand, StepLimits
from deepseek.scheduling.batching.greedy import GreedyPolicy
from deepseek.scheduling.batching.registry import batching_policy_names
from deepseek.scheduling.simulation.outcome import RequestOutcome
from deepseek.scheduling.simulation.requests import Arrival
from deepseek.scheduling.simulation.simulator import Disturbance, simulate
from deepseek.scheduling.simulation.step_times import StepTimes
from deepseek.telemetry.meters import ModelMeter
from tests.scheduling.simulation.loads import CONSTANT, TIMES, outcome_of, poisson, setup

_PROMISES = QoS(policy="greedy", ttft_s=1.0, itl_s=0.1, max_wait_s=0.2)


def test_an_answer_takes_one_step_for_its_prompt_and_one_for_each_further_token() -> None:
    arrival = Arrival(at_s=1.0, prompt_tokens=50, output_tokens=5)
    (request,) = outcome_of(setup([arrival], times=CONSTANT)).requests
    assert request.ttft_s == pytest.approx(0.1)
    assert request.itl_s == pytest.approx(0.1)
    assert request.ended_s == pytest.approx(1.5)


def test_a_long_prompt_is_computed_in_chunks_beside_those_that_decode() -> None:
    arrivals = [
        Arrival(at_s=0.0, prompt_tokens=10, output_tokens=10),
        Arrival(at_s=0.05, prompt_tokens=50, output_tokens=1),
    ]
    limits = StepLimits(max_tokens=21, max_sequences=4)
    first, second = outcome_of(setup(arrivals, times=CONSTANT, limits=limits)).requests
    assert second.ttft_s == pytest.approx(0.35), "taken at 0.1 s, then chunks of 20, 20 and 10"
    assert first.itl_s == pytest.approx(0.1), "nobody stopped for them"


def test_steps_cost_what_the_formula_says() -> None:
    arrival = Arrival(at_s=0.0, prompt_tokens=100, output_tokens=2)
    model = outcome_of(setup([arrival]))
    prompt_s = 0.01 + 100 * 0.0005 + 100 * 1e-6 + (100 * 101 / 2) * 4e-7
    assert model.busy_s == pytest.approx(prompt_s + 0.01 + 0.0008 + 101 * 1e-6)
    assert model.num_steps == 2


def test_the_same_arguments_give_the_same_outcome_and_another_seed_another() -> None:
    noisy = setup(poisson(80, per_second=6.0), times=replace(TIMES, noise=0.2), qos=_PROMISES)
    assert outcome_of(noisy, seed=3) == outcome_of(noisy, seed=3)
    assert outcome_of(noisy, seed=3).busy_s != outcome_of(noisy, seed=4).busy_s


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    per_second=st.floats(0.5, 30.0),
    name=st.sampled_from(["aimd", "fixed", "greedy", "slack", "step-up"]),
    late=st.sampled_from(list(LateRequests)),
)
def test_every_request_ends_whatever_the_policy(
    seed: int, per_second: float, name: str, late: LateRequests
) -> None:
    qos = replace(_PROMISES, policy=name, min_batch_size=4, late=late)
    arrivals = poisson(60, per_second=per_second, seed=seed)
    model = outcome_of(setup(arrivals, qos=qos, kv_tokens=1000))
    assert len(model.requests) == 60
    for request, arrival in zip(model.requests, arrivals, strict=True):
        assert request.sent_s == arrival.at_s
        assert request.ended_s >= arrival.at_s
        assert request.is_refused or math.isfinite(request.ttft_s)
    assert late is LateRequests.REFUSE or model.num_refused == 0


def test_all_built_in_policies_are_among_those_tried() -> None:
    assert set(batching_policy_names()) >= {"aimd", "fixed", "greedy", "slack", "step-up"}


def test_a_request_is_in_time_only_with_both_promises_kept() -> None:
    answered = RequestOutcome(
        sent_s=0.0, prompt_tokens=1, output_tokens=3, ttft_s=0.5, itl_s=0.05, ended_s=1.0
    )
    assert answered.is_in_time(ttft_s=0.5, itl_s=0.05)
    assert not answered.is_in_time(ttft_s=0.4, itl_s=0.05)
    assert not answered.is_in_time(ttft_s=0.5, itl_s=0.04)
    assert not replace(answered, is_refused=True).is_in_time(ttft_s=1.0, itl_s=1.0)
    assert not replace(answered, is_failed=True).is_in_time(ttft_s=1.0, itl_s=1.0)


def test_late_requests_are_refused_where_the_settings_say_so() -> None:
    arrivals = poisson(300, per_second=40.0)
    relegated = outcome_of(setup(arrivals, qos=replace(_PROMISES, policy="slack")))
    refusing = replace(_PROMISES, policy="slack", late=LateRequests.REFUSE)
    refused = outcome_of(setup(arrivals, qos=refusing))
    assert relegated.num_refused == 0
    assert refused.num_refused > 50
    assert refused.busy_s < relegated.busy_s
    assert refused.attainment(ttft_s=1.0, itl_s=0.1) == pytest.approx(
        sum(r.is_in_time(ttft_s=1.0, itl_s=0.1) for r in refused.requests) / 300
    )


# what policies are told


class Watching(GreedyPolicy):
    """Keeps what it is told."""

    def __init__(self, model: str, qos: QoS, limits: StepLimits) -> None:
        super().__init__(model, qos, limits)
        self.reports: list[tuple[float, ModelLoad, DeviceLoad]] = []
        self.demands: list[tuple[float, float]] = []

    def ready_at(self, demand: Demand) -> float:
        self.demands += [(r.arrived_s, r.due_s) for r in demand.waiting]
        return super().ready_at(demand)

    def adjust(self, load: ModelLoad, device: DeviceLoad, *, now_s: float) -> list:  # type: ignore[type-arg]
        self.reports.append((now_s, load, device))
        return []


def _watch(model, **options):  # type: ignore[no-untyped-def]
    policy = Watching("m", model.qos, model.limits)
    outcome = outcome_of(model, make_policy=lambda qos, name, limits: policy, **options)
    return policy, outcome


def test_reports_come_twice_a_second_while_the_device_idles_too() -> None:
    arrivals = [Arrival(at_s=at, prompt_tokens=20, output_tokens=3) for at in (0.0, 20.0)]
    policy, _ = _watch(setup(arrivals))
    times = [now_s for now_s, _, _ in policy.reports]
    assert len(times) == 40
    assert all(0.5 <= b - a < 0.6 for a, b in itertools.pairwise(times))


def test_the_signals_are_those_of_the_queue_and_the_meter() -> None:
    arrivals = [Arrival(at_s=0.0, prompt_tokens=20, output_tokens=30) for _ in range(10)]
    limits = StepLimits(max_tokens=192, max_sequences=4)
    policy, _ = _watch(setup(arrivals, times=CONSTANT, limits=limits, qos=_PROMISES))
    now_s, load, device = policy.reports[0]
    assert (load.num_running, load.num_waiting) == (4, 6)
    assert load.kv_tokens_used == 4 * 32
    assert load.oldest_wait_s == pytest.approx(now_s)
    assert load.deadline_slack_s == pytest.approx(0.2 - (now_s - 0.1 - 0.3) - 0.1, abs=0.11)
    assert load.batch_occupancy == pytest.approx(1.0)
    assert load.step_time_s == pytest.approx(0.1)
    assert load.wait_p99_s == pytest.approx(0.1)
    assert device.loop_utilization == pytest.approx(1.0)


def test_deadlines_run_from_when_the_loop_took_the_request() -> None:
    arrivals = [
        Arrival(at_s=0.0, prompt_tokens=20, output_tokens=1),
        Arrival(at_s=0.02, prompt_tokens=20, output_tokens=1),
    ]
    policy, outcome = _watch(setup(arrivals, times=CONSTANT, qos=_PROMISES))
    assert policy.demands == [(0.0, 1.0), (pytest.approx(0.1), pytest.approx(1.1))]
    assert outcome.requests[1].ttft_s == pytest.approx(0.18), "but clients wait from the sending on"


# disturbances


def test_a_slow_device_takes_longer_and_its_sensors_say_so() -> None:
    arrivals = poisson(40, per_second=4.0)
    slow = Disturbance(
        from_s=0.0, slowdown=1.6, sensors=DeviceLoad(is_throttled=True, temperature_c=95.0)
    )
    one = Arrival(at_s=0.0, prompt_tokens=100, output_tokens=30)
    assert outcome_of(setup([one]), disturbances=[slow]).busy_s == pytest.approx(
        1.6 * outcome_of(setup([one])).busy_s
    )
    policy, _ = _watch(setup(arrivals), disturbances=[slow])
    assert {device.is_throttled for _, _, device in policy.reports} == {True}
    assert policy.reports[-1][2].loop_utilization is not None


def test_a_step_without_memory_is_taken_back_and_the_next_ones_are_smaller() -> None:
    arrivals = [Arrival(at_s=0.0, prompt_tokens=8, output_tokens=20) for _ in range(16)]
    short = Disturbance(from_s=0.0, to_s=0.05, memory_for_sequences=4)
    policy, outcome = _watch(setup(arrivals, times=CONSTANT), disturbances=[short])
    assert all(r.output_tokens == 20 and math.isfinite(r.ttft_s) for r in outcome.requests)
    assert {load.num_running for _, load, _ in policy.reports[:3]} == {8}
    assert policy.reports[0][1].error_rate is not None
    assert policy.reports[0][1].error_rate > 0


def test_requests_of_a_failed_step_are_lost_and_the_others_go_on() -> None:
    arrivals = poisson(60, per_second=6.0)
    broken = Disturbance(from_s=2.0, to_s=4.0, error_rate=1.0)
    outcome = outcome_of(setup(arrivals), disturbances=[broken])
    lost = [request for request in outcome.requests if request.is_failed]
    assert lost
    assert all(2.0 < request.ended_s < 4.5 for request in lost)
    assert all(math.isfinite(r.ttft_s) for r in outcome.requests if not r.is_failed)


def test_a_full_kv_cache_preempts_and_every_answer_is_complete() -> None:
    arrivals = [Arrival(at_s=0.0, prompt_tokens=60, output_tokens=60) for _ in range(12)]
    tight = outcome_of(setup(arrivals, kv_tokens=400))
    roomy = outcome_of(setup(arrivals))
    assert tight.num_preemptions > 0
    assert roomy.num_preemptions == 0
    assert tight.busy_s > roomy.busy_s


# several models


def test_a_critical_model_gets_its_reserved_share_of_the_device() -> None:
    backlog = [Arrival(at_s=0.0, prompt_tokens=20, output_tokens=400) for _ in range(64)]
    encodings = [Arrival(at_s=0.0, prompt_tokens=30) for _ in range(20_000)]
    critical = setup(
        backlog,
        name="critical",
        times=replace(CONSTANT, fixed_s=0.01),
        qos=QoS(policy="greedy", priority=Priority.CRITICAL, reserved_share=0.9),
    )
    other = setup(
        encodings,
        name="other",
        is_encoder=True,
        times=StepTimes(
            fixed_s=0.001, per_prefill_token_s=2e-5, per_decoding_s=0.0, per_context_token_s=0.0
        ),
    )
    outcome = simulate([critical, other], make_meter=ModelMeter)
    first_over_s = max(request.ended_s for request in outcome.models["critical"].requests)
    critical_s = outcome.models["critical"].busy_s
    assert critical_s / first_over_s == pytest.approx(0.9, abs=0.02)
    assert outcome.utilization == pytest.approx(1.0, abs=0.01)


# what is refused


def test_steps_that_take_no_time_are_refused() -> None:
    nothing = replace(CONSTANT, fixed_s=0.0)
    with pytest.raises(ConfigurationError, match="no time"):
        outcome_of(setup([Arrival(at_s=0.0, prompt_tokens=1)], times=nothing))


def test_a_request_that_no_cache_of_this_size_holds_is_refused() -> None:
    long = Arrival(at_s=0.0, prompt_tokens=900, output_tokens=200)
    with pytest.raises(ConfigurationError, match="1100 tokens does not fit a KV cache of 1000"):
        outcome_of(setup([long], kv_tokens=1000))


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_an_hour_takes_seconds() -> None:
    hour = poisson(18_000, per_second=5.0)
    started_s = time.process_time()
    outcome = simulate([setup(hour, qos=replace(_PROMISES, policy="slack"))], make_meter=ModelMeter)
    assert outcome.duration_s > 3400
    assert time.process_time() - started_s < 30
