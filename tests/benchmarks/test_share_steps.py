"""A step record's figures: parts of the device, and the worst window of any position."""

import json
import math
from pathlib import Path

import pytest
from shares_measures.steps import Step, Steps, read_steps


def steps_of(*lasting: tuple[str, float]) -> Steps:
    at_s, found = 0.0, []
    for model, seconds in lasting:
        found.append(Step(start_s=at_s, model=model, seconds=seconds))
        at_s += seconds + 0.001  # pauses belong to nobody
    return Steps(found)


def test_a_part_is_of_all_device_time() -> None:
    assert steps_of(("a", 0.3), ("b", 0.1)).part("a") == pytest.approx(0.75)


def test_the_worst_window_is_found_between_the_edges_of_steps() -> None:
    steps = steps_of(("a", 1.0), ("b", 0.3), ("a", 0.2), ("b", 0.3), ("a", 1.0))
    # Both steps of b and the one of a between them; a longer window adds what is beside them.
    assert steps.worst_window("a", window_s=0.8) == pytest.approx(0.2 / 0.8)
    assert steps.worst_window("a", window_s=1.0) == pytest.approx(0.4 / 1.0)


def test_a_record_shorter_than_the_window_has_no_worst_one() -> None:
    assert math.isnan(steps_of(("a", 0.5)).worst_window("a", window_s=1.0))


def test_a_time_holds_whole_steps_only() -> None:
    steps = steps_of(("a", 1.0), ("a", 1.0), ("b", 1.0))
    assert steps.between(0.5, 2.5).seconds() == pytest.approx(1.0)


def test_a_record_is_read_as_the_worker_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    line = {"t": 12.5, "model": "a", "s": 0.01, "prefill": 3, "decoding": 0, "context": 3}
    path.write_text(json.dumps(line) + "\n")
    assert read_steps(path).steps == [Step(start_s=12.5, model="a", seconds=0.01)]
