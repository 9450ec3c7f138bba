"""`deepseek bench --engine` as a person types it: a real worker process, no server."""

import json
from pathlib import Path

import pytest

from deepseek.cli.main import main

ONE_THREAD = ["--num-threads", "1", "--device", "cpu"]


def deployment(tmp_path: Path, source: Path) -> Path:
    file = tmp_path / "deployment.yaml"
    file.write_text(
        f"models:\n"
        f"  small: {{source: {source}, pool: quiet, dtype: float32, max_model_len: 100}}\n"
        f"  other: {{source: absent}}\n"
        f"pools:\n"
        f"  quiet: {{device: cpu, num_threads: 1, kv_cache_bytes: 16MiB}}\n"
    )
    return file


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_the_table_and_the_json_say_the_same(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    code = main(["bench", "--engine", "torch", "--model", str(tiny_llama_dir), *ONE_THREAD,
                 "--dtype", "float32", "--speculation", "prompt-lookup",
                 "--concurrency", "3", "--requests", "7", "--input-tokens", "40",
                 "--output-tokens", "11", "--json", str(out)])  # fmt: skip
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert code == 0
    assert (report["num_ok"], report["input_tokens"], report["output_tokens"]) == (7, 280, 77)
    assert (report["engine"], report["url"], report["token_counting"]) == ("torch", None, "ids")
    assert report["ttft"]["num"] == 7
    assert "on engine torch, concurrency 3: 7 of 7 requests complete" in printed
    for words in ("time to first token", "inter-token", "end to end", "errors: 0"):
        assert words in printed
    assert f"{report['ttft']['p50_ms']:,.1f}" in printed


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_deployment_file_gives_all_other_settings(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = deployment(tmp_path, tiny_llama_dir)
    argv = ["bench", "--engine", "auto", "-f", str(file), "--model", "small", "--requests", "2"]
    assert main([*argv, "--input-tokens", "60", "--output-tokens", "5"]) == 0
    assert "generate small on engine auto" in capsys.readouterr().out
    assert main([*argv, "--input-tokens", "90", "--output-tokens", "11"]) == 2
    error = capsys.readouterr().err
    assert "--input-tokens 90 and --output-tokens 11 exceed the 100 tokens of 'small'" in error
    assert main([*argv, "--dtype", "float8"]) == 2
    assert "--dtype: must be one of auto, float32" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_an_engine_that_is_not_installed_is_exit_2(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--engine", "vllm", "--model", str(tiny_llama_dir), *ONE_THREAD]) == 2
    assert "has no vllm that can be used" in capsys.readouterr().err


def test_an_encoder_is_refused(tiny_bert_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--engine", "torch", "--model", str(tiny_bert_dir)]) == 2
    assert "is there to embed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--engine", "torch"], "--engine needs --model"),
        (["--engine", "torch", "--url", "http://x"], "--url has no effect with --engine"),
        (["--engine", "torch", "--task", "chat"], "--task has no effect with --engine"),
        (["--engine", "torch", "--ignore-eos"], "--ignore-eos has no effect with --engine"),
        (["--engine", "torch", "--temperature", "0"], "--temperature has no effect with --engine"),
        (["--engine", "torch", "--trace", "x"], "--trace has no effect with --engine"),
        (["--dtype", "float32"], "--dtype has no effect without --engine"),
        (["-f", "x.yaml"], "--file has no effect without --engine"),
        (["--num-threads", "2"], "--num-threads has no effect without --engine"),
        (["--engine", "torch", "--model", "absent/model"], "absent/model"),
        (
            ["--engine", "torch", "--model", "x", "--quantization", "int3"],
            "--quantization: must be one of int8",
        ),
        (["--engine", "torch", "--model", "x", "--device", "tpu"], "--device: "),
    ],
)
def test_a_run_that_cannot_begin_is_exit_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    assert main(["bench", *argv]) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_the_file_does_not_have_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = deployment(tmp_path, tmp_path)
    assert main(["bench", "--engine", "auto", "-f", str(file), "--model", "huge"]) == 2
    assert "has no model 'huge'; it has: small, other" in capsys.readouterr().err
