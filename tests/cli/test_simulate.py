"""`deepseek simulate` as a person types it."""

import json
from pathlib import Path

import pytest

from deepseek.cli.main import main


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    rows = [
        {"timestamp": 180 * n, "input_length": 40 + 7 * n % 90, "output_length": 5 + n % 20}
        for n in range(120)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "steps.jsonl"
    lines = [
        {
            "t": n * 0.1,
            "model": "chat",
            "s": 0.002 + 0.0001 * (n % 60) + 0.0002 * (n % 7),
            "prefill": n % 60,
            "decoding": n % 7,
            "context": 100,
            "sequences": 8,
        }
        for n in range(200)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_table_compares_policies_at_loads(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["simulate", "--trace", str(trace), "--load", "0.5", "--load", "1.5",
                 "--policy", "greedy", "--policy", "fixed:8:100ms"])  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    assert "120 requests; full load is" in printed
    assert printed.count("greedy") == 2
    assert printed.count("fixed:8:100ms") == 2
    assert "%" in printed
    assert all(len(line) <= 110 for line in printed.splitlines())


def test_the_json_holds_what_each_policy_achieved(
    trace: Path, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["simulate", "--trace", str(trace), "--load", "0.4", "--load", "3", "--json",
                 "--step-record", str(record), "--policy", "slack", "--late", "refuse",
                 "--ttft", "300ms", "--itl", "0.05", "--max-wait", "50ms"]  # fmt: skip
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    light, heavy = result["rows"]
    assert result["fit_error"] < 0.01
    assert light["attainment"] > 0.99 > heavy["attainment"]
    assert (light["refused"], heavy["refused"] > 0) == (0, True)
    assert light["utilization"] < heavy["utilization"] <= 1
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == result, "the same again"


def test_an_encoders_requests_take_one_step(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--trace", str(trace), "--encoder", "--load", "0.3", "--json",
                 "--policy", "greedy"]) == 0  # fmt: skip
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["itl_p50_s"] is None
    assert row["steps"] <= 120
    assert row["attainment"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "magic"], "'magic' is unknown; known: aimd, fixed, greedy"),
        (["--policy", "fixed:x"], "--policy fixed:x: 'x' is not a whole number"),
        (["--policy", "fixed:8:soon"], "'soon' is not a duration"),
        (["--step-record", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
        (["--max-requests", "1"], "one request is no load"),
        (["--kv-tokens", "50"], "does not fit a KV cache of 50"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_its_remedy(
    trace: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["simulate", "--trace", str(trace), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_deadline_that_is_no_duration_is_a_usage_error(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--trace", str(trace), "--ttft", "tomorrow"])
    assert ended.value.code == 2
    assert "such as 200ms" in capsys.readouterr().err
