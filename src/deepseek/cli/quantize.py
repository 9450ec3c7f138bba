"""`deepseek quantize`: choose a model's precisions on data, and save it in them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.cli.arguments import Subparsers
from deepseek.cli.progress import TerminalProgress
from deepseek.core.errors import ConfigurationError, QuantizationRefused

if TYPE_CHECKING:
    from deepseek.quantization.config import MixedPrecisionConfig
    from deepseek.quantization.report import QuantizationReport


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "quantize",
        help="save a model with mixed precision, as accurate as you ask for",
        description="Quantize MODEL as the config says, promote sensitive layers until the "
        "accuracy asked for is met on held-out data, and save the result. Exit code 1, and nothing "
        "saved, where it cannot be met. A run that was killed goes on where it ended when the same "
        "command is given again.",
    )
    parser.add_argument("model", metavar="MODEL", help="a model directory or a catalogue name")
    parser.add_argument(
        "-c", "--config", metavar="FILE", type=Path, help="YAML of the precisions (default: int8)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="directory to save the model in"
    )
    parser.add_argument(
        "--data",
        metavar="FILE",
        type=Path,
        help="texts to judge by: one a line, or JSON lines with `text` and, if known, `label` "
        "(default: a built-in sample)",
    )
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="write the report here: .html, else JSON"
    )
    parser.add_argument(
        "--format",
        choices=("nested", "compressed-tensors"),
        default="nested",
        help="nested: switchable, for this platform and transformers (default); "
        "compressed-tensors: fixed precisions, for vLLM and others",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Quantize, report and save; 1 where the accuracy asked for cannot be had."""
    out: Path = arguments.out
    config = _read_config(arguments.config)
    _require_new(out)
    # Deferred: torch and transformers take seconds, which a wrong argument should not cost.
    from deepseek.quantization.loader import load_model
    from deepseek.quantization.saving import save

    state_file = out.with_name(f"{out.name}.search.json")
    with TerminalProgress() as progress:
        model = load_model(arguments.model, progress=progress)
        try:
            report = model.apply_quantization(
                config,
                data=arguments.data,
                analyse=arguments.report is not None,
                state_file=state_file,
                progress=progress,
            )
        except QuantizationRefused as refusal:
            _write_report(refusal.report, arguments.report)
            state_file.unlink(missing_ok=True)
            print(f"refused: {refusal.message}")
            return 1
        save(model, out, report=report, form=arguments.format, progress=progress)
    state_file.unlink(missing_ok=True)
    _write_report(report, arguments.report)
    print(f"{report}\nsaved in {out}")
    return 0


def _read_config(path: Path | None) -> "MixedPrecisionConfig":
    """Return the file's config; every fault is one line of the error."""
    from pydantic import ValidationError

    from deepseek.core.settings_faults import plain_faults
    from deepseek.core.yaml_document import Fault, read_yaml
    from deepseek.quantization.config import MixedPrecisionConfig

    if path is None:
        return MixedPrecisionConfig()
    try:
        document = read_yaml(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    faults = list(document.faults)
    if not faults:
        try:
            return MixedPrecisionConfig.model_validate(document.data or {})
        except ValidationError as error:
            faults = [
                Fault(line=document.line_of(place), path=place, message=text)
                for place, text in plain_faults(error, MixedPrecisionConfig)
            ]
    raise ConfigurationError("\n".join(f"{path}:{fault.line}: {fault}" for fault in faults))


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"--out: {out} exists and is not empty; name a new directory")


def _write_report(report: "QuantizationReport | None", path: Path | None) -> None:
    if report is None or path is None:
        return
    if path.suffix == ".html":
        report.to_html(path)
    else:
        report.to_json(path)
