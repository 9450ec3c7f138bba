"""Step times: what a record shows is found again, and what is none is refused."""

import json
import random
from dataclasses import replace

import pytest

from deepseek.core.errors import ConfigurationError
from deepseek.scheduling.batching.base import prompt_pairs
from deepseek.scheduling.simulation.step_times import (
    StepTimes,
    StepTiming,
    fit_step_times,
    noise_factor,
    read_step_record,
)
from tests.scheduling.simulation.loads import TIMES


def _record(times: StepTimes, *, count: int = 600, seed: int = 0) -> list[StepTiming]:
    draws = random.Random(seed)
    at_s = 0.0
    steps: list[StepTiming] = []
    for _ in range(count):
        decoding = draws.randint(0, 40)
        prefill = draws.choice([0, 0, draws.randint(1, 192)])
        step = StepTiming(
            t=at_s,
            model="m",
            s=1.0,
            prefill=prefill,
            decoding=decoding,
            context=prefill + sum(draws.randint(1, 900) for _ in range(decoding)),
            sequences=decoding + 1,
            pairs=prompt_pairs(prefill, start=draws.choice([0, 128, 640])),
        )
        factor = noise_factor(draws.gauss(0, 1), noise=times.noise)
        seconds = times.expected_s(step.shape) * factor
        steps.append(
            StepTiming(**{f: getattr(step, f) for f in step.__struct_fields__} | {"s": seconds})
        )
        at_s += seconds + times.between_s
    return steps


def test_the_costs_that_made_a_record_are_found_again() -> None:
    fit = fit_step_times(_record(replace(TIMES, between_s=0.0003)))
    assert fit.times.fixed_s == pytest.approx(TIMES.fixed_s, rel=1e-6)
    assert fit.times.per_prefill_token_s == pytest.approx(TIMES.per_prefill_token_s, rel=1e-6)
    assert fit.times.per_decoding_s == pytest.approx(TIMES.per_decoding_s, rel=1e-6)
    assert fit.times.per_context_token_s == pytest.approx(TIMES.per_context_token_s, rel=1e-6)
    assert fit.times.per_prefill_pair_s == pytest.approx(TIMES.per_prefill_pair_s, rel=1e-6)
    assert fit.times.between_s == pytest.approx(0.0003)
    assert fit.mape < 1e-9
    assert fit.num_held_out == (600 - 16) // 5


def test_the_error_of_held_out_steps_is_that_of_the_noise() -> None:
    fit = fit_step_times(_record(replace(TIMES, noise=0.1), count=3000))
    assert fit.times.per_prefill_token_s == pytest.approx(TIMES.per_prefill_token_s, rel=0.03)
    assert fit.times.noise == pytest.approx(0.1, rel=0.1)
    assert fit.mape == pytest.approx(0.08, abs=0.01), "mean absolute deviation of a tenth"


def test_more_work_never_takes_less_time() -> None:
    odd = [
        StepTiming(t=float(n), model="m", s=0.1 - 0.001 * (n % 40), prefill=0,
                   decoding=n % 40, context=10 * (n % 7), sequences=n % 40)
        for n in range(200)
    ]  # fmt: skip
    times = fit_step_times(odd).times
    assert times.per_decoding_s == 0.0
    assert times.fixed_s > 0
    assert times.per_prefill_token_s == 0.0, "no step had a prompt"


def test_a_record_of_a_few_steps_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="holds 20 steps of the model; a fit needs 56"):
        fit_step_times(_record(TIMES, count=20))


def test_a_record_is_read_one_model_at_a_time() -> None:
    line = {"t": 1.0, "s": 0.1, "prefill": 3, "decoding": 1, "context": 9, "sequences": 2}
    lines = [json.dumps({**line, "model": name}) for name in ("a", "b", "a")] + ["\n"]
    lines.append(json.dumps({**line, "model": "a", "sequences": 0}))  # the rest of the one before
    assert [step.model for step in read_step_record(lines, model="a")] == ["a", "a"]
    assert read_step_record(lines, model="b")[0].shape.num_context_tokens == 9
    with pytest.raises(ConfigurationError, match="several models, name one: a, b"):
        read_step_record(lines)
    with pytest.raises(ConfigurationError, match="no model 'c'; it holds: a, b"):
        read_step_record(lines, model="c")


@pytest.mark.parametrize("line", ["{", '{"t": 1}', '{"t": "x", "model": "m"}'])
def test_a_line_that_is_no_step_is_named(line: str) -> None:
    good = json.dumps(
        {"t": 1, "model": "m", "s": 1, "prefill": 0, "decoding": 1, "context": 1, "sequences": 1}
    )
    with pytest.raises(ConfigurationError, match="line 2: is not a step"):
        read_step_record([good, line])
