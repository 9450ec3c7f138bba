"""The report as one HTML page: tables and two plots in inline SVG, nothing loaded from afar."""

from collections.abc import Sequence
from html import escape

from deepseek.quantization.report_data import ReportData
from deepseek.quantization.report_plots import bar_plot, front_plot

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --line: #d9dee7;
  --int4: #c2571a; --int8: #2166b0; --fp16: #4a7d46; --bad: #b3261e; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #39414f;
  --int4: #f0925a; --int8: #6fb0ee; --fp16: #8cc487; --bad: #f2867f; --paper: #14181f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 960px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 3px 8px; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; } .int4 { color: var(--int4); } .int8 { color: var(--int8); }
.fp16 { color: var(--fp16); } .no { color: var(--bad); font-weight: 600; }
.soft { color: var(--soft); }
.facts td:first-child { color: var(--soft); width: 16rem; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .axis { stroke: var(--line); } svg .name { fill: var(--ink); }
"""


def page(report: ReportData) -> str:
    """Return the page."""
    verdict = (
        ""
        if report.is_met
        else '<p class="no">Refused: the accuracy asked for is not met; '
        "the model was left as it was.</p>"
    )
    parts = [
        f"<h1>Mixed precision of {escape(report.model)}</h1>{verdict}",
        _facts(report),
        _sensitivity(report),
        _front(report),
        f"<h2>Layers</h2>{_layers(report)}",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Mixed precision of {escape(report.model)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _facts(report: ReportData) -> str:
    accuracy = report.accuracy
    counts = ", ".join(f"{count} {name}" for name, count in report.counts().items() if count)
    threshold = "none" if accuracy.threshold is None else f"{accuracy.threshold:g}"
    rows = [
        ("accuracy is", accuracy.metric),
        ("before, after", f"{accuracy.before:.4f}, {accuracy.after:.4f}"),
        ("relative accuracy (threshold)", f"{accuracy.relative:.4f} ({threshold})"),
        ("divergence from the float model", f"{accuracy.divergence:.4g}"),
        ("first choice as the float model's", f"{accuracy.agreement:.2%}"),
        (
            "judged by",
            f"{accuracy.num_predictions:,} predictions on {accuracy.num_texts:,} texts of "
            f"{accuracy.data}, none of them among the {accuracy.num_search_texts:,} searched with",
        ),
        ("layers", counts),
        ("fp16 is", f"{report.fp16_means} on {report.device}"),
        (
            "memory before, after",
            f"{_mib(report.resident_bytes_before)}, {_mib(report.resident_bytes)}",
        ),
        ("precision can be switched", "yes" if report.dynamic_switch else "no"),
        ("promoted", ", ".join(report.promotions) or "nothing"),
    ]
    return '<table class="facts">' + "".join(_row([a, b]) for a, b in rows) + "</table>"


def _sensitivity(report: ReportData) -> str:
    if not report.sensitivities:
        return ""
    bars = [(s.unit, s.divergence, str(s.precision)) for s in report.sensitivities]
    return (
        "<h2>Sensitivity</h2><p class='soft'>Divergence from the float model with one unit alone "
        f"quantized, on the search data.</p>{bar_plot(bars)}"
    )


def _front(report: ReportData) -> str:
    if len(report.front) < 2:
        return ""
    points = [(point.bits_per_weight, point.relative_accuracy) for point in report.front]
    return (
        "<h2>Size and accuracy</h2><p class='soft'>Bits per weight of the quantized layers against "
        "relative accuracy on the held-out data, as the most sensitive units are promoted.</p>"
        f"{front_plot(points, threshold=report.accuracy.threshold)}"
    )


def _layers(report: ReportData) -> str:
    head = "".join(
        f"<th{' class=n' if number > 2 else ''}>{name}</th>"
        for number, name in enumerate(
            ("layer", "class", "precision", "weight error", "KiB before", "KiB after")
        )
    )
    rows = "".join(
        f"<tr><td>{escape(layer.name)}</td><td>{layer.layer_class}</td>"
        f'<td class="{layer.precision}">{layer.precision}'
        f"{'' if layer.precision is layer.configured else f' (was {layer.configured})'}</td>"
        f'<td class="n">{layer.error:.2%}</td>'
        f'<td class="n">{layer.num_bytes_before / 1024:,.0f}</td>'
        f'<td class="n">{layer.num_bytes / 1024:,.0f}</td></tr>'
        for layer in report.layers
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
