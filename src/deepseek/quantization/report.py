"""The report of a quantization, as JSON, as a page, and (printed) as words."""

from pathlib import Path

from deepseek.quantization.report_data import ReportData
from deepseek.quantization.report_page import page


class QuantizationReport(ReportData):
    """What `apply_quantization` returns, and what a refusal carries."""

    def to_json(self, path: Path | str | None = None) -> str:
        """Return the report as JSON, written to `path` as well where it is given."""
        text = self.model_dump_json(indent=2) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_html(self, path: Path | str | None = None) -> str:
        """Return the report as one HTML page that loads nothing else, written where `path` says."""
        text = page(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text
