"""Writes a quantized model, its tokenizer and its report into a directory, all or nothing."""

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedModel

from deepseek.quantization.exporting import export
from deepseek.quantization.report import QuantizationReport
from deepseek.weights.progress import Progress
from deepseek.weights.storage import explaining_storage_faults

Form = Literal["nested", "compressed-tensors"]

REPORT_FILE = "quantization_report.json"


def save(
    model: PreTrainedModel,
    directory: Path,
    *,
    report: QuantizationReport,
    form: Form,
    progress: Progress,
) -> None:
    """Save a model that was loaded from a directory, with the tokenizer found there.

    It is written beside its place and renamed into it. Raises `StorageFull`, `ConfigurationError`,
    and what `export` raises.
    """
    progress.stage(f"saving {directory}")
    purpose = "the quantized model"
    with explaining_storage_faults(directory, report.resident_bytes, purpose=purpose):
        directory.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
        try:
            _write(model, work, report=report, form=form)
            work.chmod(0o755)  # mkdtemp's directories are their owner's alone
            work.replace(directory)
        except BaseException:
            shutil.rmtree(work)
            raise


def _write(
    model: PreTrainedModel, directory: Path, *, report: QuantizationReport, form: Form
) -> None:
    if form == "compressed-tensors":
        export(model, directory)
    else:
        model.save_pretrained(directory)
    source = model.config._name_or_path
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(directory)
    report.to_json(directory / REPORT_FILE)
