"""The file of a decision record: bounded, begun anew, and no reason to stop."""

import logging
from pathlib import Path

import pytest

from deepseek.core.load import DeviceLoad, ModelLoad
from deepseek.core.qos import QoS
from deepseek.engine.decision_record import DecisionRecord
from deepseek.scheduling.batching.base import StepLimits, StepShape
from deepseek.scheduling.decision_log import RecordedPolicy, replay

LOAD = ModelLoad(
    model="m",
    num_waiting=1,
    num_running=1,
    kv_tokens_used=1,
    kv_tokens_cached=0,
    kv_tokens_capacity=8,
)
SHAPE = StepShape(num_prefill_tokens=8, num_decoding=1, num_context_tokens=9, num_sequences=2)


def recorded(record: DecisionRecord) -> RecordedPolicy:
    limits = StepLimits(max_tokens=64, max_sequences=8)
    return RecordedPolicy(QoS(policy="slack"), "m", limits, write=record.add)


def test_a_record_can_be_read_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    policy = recorded(DecisionRecord(path, max_bytes=1 << 20))
    for number in range(1, 4):
        policy.observe(SHAPE, seconds=0.01)
        policy.adjust(LOAD, DeviceLoad(), now_s=float(number))
        model = replay(path.read_bytes().splitlines(keepends=True)).models["m"]
        assert (model.num_steps, model.num_reports) == (number, number)


def test_a_full_record_ends_and_still_replays_from_its_beginning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.jsonl"
    policy = recorded(DecisionRecord(path, max_bytes=20_000))
    for number in range(400):
        policy.observe(SHAPE, seconds=0.01)
        policy.adjust(LOAD, DeviceLoad(), now_s=float(number))
    assert 19_000 < path.stat().st_size < 20_100
    result = replay(path.read_bytes().splitlines(keepends=True))
    assert result.is_same
    assert result.ended == "it has reached 20000 bytes"
    assert result.models["m"].num_reports > 10
    assert len([r for r in caplog.records if "is full" in r.getMessage()]) == 1


def test_a_new_record_keeps_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    recorded(DecisionRecord(path, max_bytes=1 << 20)).adjust(LOAD, DeviceLoad(), now_s=1.0)
    first = path.read_bytes()
    recorded(DecisionRecord(path, max_bytes=1 << 20)).adjust(LOAD, DeviceLoad(), now_s=2.0)
    assert path.with_name("run.jsonl.1").read_bytes() == first
    assert replay(path.read_bytes().splitlines(keepends=True)).models["m"].num_reports == 1


def test_a_file_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = recorded(DecisionRecord(tmp_path / "no" / "run.jsonl", max_bytes=1 << 20))
    for number in range(3):
        policy.adjust(LOAD, DeviceLoad(), now_s=float(number))
    (said,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "decision_record" in said.getMessage()
