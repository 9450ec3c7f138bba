"""The benchmark `engine_checks` in its short form: its promises hold on tiny models."""

import os
import subprocess
import sys

import pytest

from benchmarks.frame import REPOSITORY
from deepseek.weights.child_process import environment_of_own_modules


def run_quick(measure: str) -> str:
    result = subprocess.run(
        [sys.executable, "benchmarks/engine_checks.py", "--quick", "--only", measure],
        cwd=REPOSITORY,
        env={**os.environ, **environment_of_own_modules(), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_answers_of_every_family_are_those_of_transformers() -> None:
    table = run_quick("answers")
    for family in ("llama", "mistral", "qwen2", "qwen3", "gpt2", "qwen3_moe", "deepseek_v3"):
        assert f"tiny {family}: of 12 answers" in table


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_worker_keeps_nothing_of_requests_that_were_given_up() -> None:
    assert "2000 short requests: left running or waiting" in run_quick("soak")
