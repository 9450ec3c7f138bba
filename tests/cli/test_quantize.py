"""`deepseek quantize` as a person types it, on a tiny model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import deepseek.quantization  # noqa: F401 - registers the format that is loaded below
from deepseek.cli.main import main

CONFIG = """\
attentionLayers: int8
ffnLayers: int4
dynamicSwitch: {floor: int4, longInputTokens: 2048}
accuracyThreshold: 0.9
rules:
  - {layers: "model.layers.0.mlp.*", precision: int8}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    lines = [f"{n} once upon a time a small model answered question {n * 7}" for n in range(150)]
    file.write_text("\n".join(lines))
    return file


def test_a_model_is_quantized_reported_and_saved(
    tiny_llama_dir: Path,
    config: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, page = tmp_path / "out", tmp_path / "report.html"
    code = main(["quantize", str(tiny_llama_dir), "-c", str(config), "--out", str(out),
                 "--data", str(data), "--report", str(page)])  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0
    assert f"saved in {out}" in printed.out
    assert "measuring sensitivity" in printed.err
    report = json.loads((out / "quantization_report.json").read_text())
    assert report["is_met"]
    assert report["accuracy"]["relative"] >= 0.9
    assert report["accuracy"]["data"] == "texts.txt"
    assert report["sensitivities"]
    assert page.read_text().count("<svg") == 2
    model = AutoModelForCausalLM.from_pretrained(out)
    tokens = AutoTokenizer.from_pretrained(out)("once upon a time", return_tensors="pt")
    with torch.inference_mode():
        assert torch.isfinite(model(**tokens).logits).all()
    assert {p.name for p in tmp_path.iterdir()} == {
        "out",
        "report.html",
        "config.yaml",
        "texts.txt",
    }


def test_an_accuracy_out_of_reach_saves_nothing_but_the_report(
    tiny_llama_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out, report = tmp_path / "c.yaml", tmp_path / "out", tmp_path / "report.json"
    config.write_text("accuracy_threshold: 1.0\n")
    code = main(["quantize", str(tiny_llama_dir), "-c", str(config), "--out", str(out),
                 "--data", str(data), "--report", str(report)])  # fmt: skip
    assert code == 1
    assert "refused: accuracy_threshold: 1 is not met" in capsys.readouterr().out
    assert not out.exists()
    assert json.loads(report.read_text())["is_met"] is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("attention_layer: int8\n", "c.yaml:1: attention_layer: unknown key; did you mean"),
        ("\nffn_layers: int5\n", "c.yaml:2: ffn_layers: must be one of int4, int8, fp16"),
        ("accuracy_threshold: 1.1\n", "c.yaml:1: accuracy_threshold: must be a number"),
        ("group_size: 50\n", "c.yaml:1: group_size: must be one of 32, 64, 128"),
        ("rules:\n  - {layers: 'no.such.*', precision: int4}\n", "matches no layer"),
        ("rules: [\n", "c.yaml:"),
    ],
)
def test_a_wrong_config_is_told_by_its_line(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    code = main(["quantize", str(tiny_llama_dir), "-c", str(config), "--out", str(tmp_path / "o")])
    assert code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_directory_that_holds_something_is_not_written_to(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(tiny_llama_dir), "--out", str(tiny_llama_dir)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["quantize", "no-such-model", "--out", str(tmp_path / "out")]) == 2
    assert "no-such-model" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_killed_command_goes_on_where_it_ended(
    tiny_llama_dir: Path, config: Path, data: Path, tmp_path: Path
) -> None:
    out, state = tmp_path / "out", tmp_path / "out.search.json"
    command = [sys.executable, "-m", "deepseek.cli.main", "quantize", str(tiny_llama_dir),
               "-c", str(config), "--out", str(out), "--data", str(data),
               "--report", str(tmp_path / "report.json")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while not (state.exists() and "alone" in state.read_text()) and process.poll() is None:
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    measured = json.loads(state.read_text())["known"]
    assert not out.exists(), "killed too late for this test to mean anything"
    subprocess.run(command, env=environment, check=True, capture_output=True)
    sensitivities = json.loads((tmp_path / "report.json").read_text())["sensitivities"]
    found = {f"alone: {s['unit']}={s['precision']}": s["divergence"] for s in sensitivities}
    for name, fidelity in measured.items():
        if name.startswith("alone"):
            assert found[name] == fidelity["divergence"]
    assert out.is_dir()
    assert not state.exists()
