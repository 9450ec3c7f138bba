"""The fast law of the default policy: order, budget, lateness, holding back."""

import math

import pytest

from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import LateRequests, QoS
from deepseek.scheduling.batching.base import Demand, StepPlan
from deepseek.scheduling.batching.slack import SlackPolicy
from tests.scheduling.batching.queue import LIMITS, Queued, Server, taught


def slack(**qos: object) -> SlackPolicy:
    policy = SlackPolicy("m", QoS(**qos), LIMITS)  # type: ignore[arg-type]  # checked by QoS
    taught(policy)
    return policy


def plan(policy: SlackPolicy, *waiting: Queued, running: tuple[Queued, ...] = ()) -> StepPlan:
    demand = Demand(now_s=10.0, waiting=waiting, running=running)
    return policy.plan(demand, max_step_s=math.inf)


def ids(chosen: StepPlan) -> list[int]:
    assert chosen.order is not None
    return [request.id for request in chosen.order]


def busy_device() -> tuple[ModelLoad, DeviceLoad]:
    load = ModelLoad(
        model="m",
        num_waiting=0,
        num_running=4,
        kv_tokens_used=0,
        kv_tokens_cached=0,
        kv_tokens_capacity=0,
        arrival_rate=8.0,
    )
    return load, DeviceLoad(utilization=0.6)


def test_the_earliest_deadline_goes_first() -> None:
    policy = slack(ttft_s=5.0)
    chosen = plan(policy, Queued(1, 9.0, 14.0), Queued(2, 9.1, 12.0), Queued(3, 9.2, 13.0))
    assert ids(chosen) == [2, 3, 1]


def test_a_request_that_cannot_be_in_time_goes_after_those_that_can() -> None:
    policy = slack(ttft_s=1.0)
    late, in_time = Queued(1, 8.0, 10.001), Queued(2, 9.9, 10.9)
    assert ids(plan(policy, late, in_time)) == [2]
    assert ids(plan(policy, late)) == [1]


def test_a_request_that_cannot_be_in_time_is_refused_where_the_model_says_so() -> None:
    policy = slack(ttft_s=1.0, late=LateRequests.REFUSE)
    late, in_time = Queued(1, 8.0, 10.001), Queued(2, 9.9, 10.9)
    chosen = plan(policy, late, in_time)
    assert [request.id for request in chosen.refused] == [1]
    assert ids(chosen) == [2]


def test_prompts_in_front_count_towards_being_late() -> None:
    policy = slack(ttft_s=0.5)
    # 400 tokens a request at about 0.3 ms each: the fourth one's turn comes after half a second.
    queue = [Queued(number, 10.0, 10.5, num_pending=400) for number in range(8)]
    assert 1 <= len(ids(plan(policy, *queue))) < 8


def test_few_requests_that_are_late_run_at_a_time() -> None:
    policy = slack(ttft_s=1.0)
    late = [Queued(number, 8.0, 9.0) for number in range(30)]
    assert 1 <= len(ids(plan(policy, *late))) <= LIMITS.max_sequences // 8


def test_a_prompt_is_cut_to_the_slack_of_those_that_decode() -> None:
    policy = slack(ttft_s=9.0, itl_s=0.05)
    prompt = Queued(9, 10.0, 19.0, num_pending=400)
    easy = Queued(1, 9.0, 10.2, num_pending=1, num_computed=50)
    tight = Queued(1, 9.0, 10.03, num_pending=1, num_computed=50)
    assert plan(policy, prompt, running=(easy,)).max_tokens == LIMITS.max_tokens
    assert 16 < plan(policy, prompt, running=(tight,)).max_tokens < 100


def test_without_deadlines_it_takes_everybody_at_once() -> None:
    policy = slack(max_wait_s=0.2)
    demand = Demand(now_s=10.0, waiting=[Queued(1, 10.0), Queued(2, 10.0)], running=())
    assert policy.ready_at(demand) == 10.0
    assert ids(policy.plan(demand, max_step_s=math.inf)) == [1, 2]


def test_the_sharing_of_the_device_bounds_a_step() -> None:
    policy = slack()
    demand = Demand(now_s=10.0, waiting=[Queued(1, 10.0, num_pending=400)], running=())
    bounded = policy.plan(demand, max_step_s=0.03)
    assert 16 < bounded.max_tokens < LIMITS.max_tokens


def test_a_step_is_held_back_until_just_before_the_next_token_is_due() -> None:
    policy = slack(ttft_s=1.0, itl_s=0.1, max_wait_s=0.2)
    running = Queued(1, 9.0, 10.1, num_pending=1, num_computed=50)
    demand = Demand(now_s=10.0, waiting=(), running=[running])
    assert 10.03 < policy.ready_at(demand) < 10.09


def test_nothing_is_held_back_longer_than_the_longest_wait() -> None:
    policy = slack(ttft_s=60.0, max_wait_s=0.2)
    demand = Demand(now_s=10.0, waiting=[Queued(1, 9.9, 69.9)], running=())
    assert policy.ready_at(demand) == pytest.approx(10.1)


def test_the_smallest_batch_is_soft_and_strict_only_where_it_says_so() -> None:
    soft = slack(ttft_s=0.1, min_batch_size=16, max_wait_s=5.0)
    strict = slack(ttft_s=0.1, min_batch_size=16, max_wait_s=5.0, strict=True)
    demand = Demand(now_s=10.0, waiting=[Queued(1, 10.0, 10.1)], running=())
    assert soft.ready_at(demand) < 10.1
    assert strict.ready_at(demand) == 15.0
    full = Demand(now_s=10.0, waiting=[Queued(n, 10.0, 10.1) for n in range(16)], running=())
    assert soft.ready_at(full) == 10.0
    assert strict.ready_at(full) == 10.0


def test_an_idle_device_is_not_spared() -> None:
    policy = slack(ttft_s=1.0, itl_s=0.1, max_wait_s=0.2)
    demand = Demand(now_s=10.0, waiting=[Queued(1, 10.0, 11.0)], running=())
    load, device = busy_device()
    policy.adjust(load, device, now_s=9.0)
    assert policy.ready_at(demand) > 10.0
    (decision,) = policy.adjust(load, DeviceLoad(utilization=0.02), now_s=9.5)
    assert decision.action == "start-at-once"
    assert policy.ready_at(demand) == 10.0


def test_holding_back_serves_the_same_answers_in_fewer_steps() -> None:
    steps: dict[float, int] = {}
    for wait_s in (0.0, 0.2):
        policy = slack(ttft_s=1.0, itl_s=0.1, max_wait_s=wait_s)
        server, coming = Server(policy, itl_s=0.1), []
        for number in range(40):
            at_s = 0.12 * number
            coming.append(Queued(number, at_s, at_s + 1.0, num_left=12))
        steps[wait_s] = server.serve(coming)
        assert len(server.finished) == 40
    assert steps[0.2] < 0.8 * steps[0.0]


def test_one_late_prompt_is_computed_at_a_time() -> None:
    policy = slack(ttft_s=1.0)
    late = [Queued(number, 8.0 + number / 100, 9.0, num_pending=300) for number in range(8)]
    (first,) = ids(plan(policy, *late))
    begun = late.pop(first)
    assert ids(plan(policy, *late, running=(begun,))) == []
    begun.num_pending = 1
    assert len(ids(plan(policy, *late, running=(begun,)))) == 1


def test_of_late_requests_the_one_that_has_waited_longest_for_its_length_goes_first() -> None:
    policy = slack(ttft_s=1.0)
    short, long = Queued(1, 8.0, 9.0, num_pending=10), Queued(2, 7.0, 8.0, num_pending=400)
    assert ids(plan(policy, long, short)) == [1]
    ancient = Queued(3, -200.0, -199.0, num_pending=400)
    assert ids(plan(policy, ancient, short)) == [3]


def test_a_token_that_is_nearly_due_does_not_make_all_that_wait_late() -> None:
    policy = slack(ttft_s=0.5, itl_s=0.1, late=LateRequests.REFUSE)
    nearly = Queued(1, 9.0, 10.012, num_pending=1, num_computed=50)
    chosen = plan(policy, Queued(2, 10.0, 10.5, num_pending=600), running=(nearly,))
    assert chosen.refused == ()
    assert ids(chosen) == [2]


def test_where_nobody_waits_for_long_steps_keep_what_most_of_them_may_take_longer() -> None:
    sizes = []
    for spread in (0.0, 0.3):
        policy = SlackPolicy("m", QoS(ttft_s=9.0, itl_s=0.1), LIMITS)
        taught(policy, spread=spread, num_steps=600)
        running = Queued(1, 9.0, 10.05, num_pending=1, num_computed=50)
        prompt = Queued(2, 10.0, 19.0, num_pending=150)
        sizes.append(plan(policy, prompt, running=(running,)).max_tokens)
    assert sizes[1] < 0.8 * sizes[0]
