"""Shows a load report in the terminal."""

from rich.console import Console
from rich.table import Table

from deepseek.cli.load.report import LatencySummary, LoadReport

_COUNTING = {
    "usage": "counted by the server (usage)",
    "chunks": "text chunks counted as tokens: the server sends no usage",
    "mixed": "counted by the server where it sent usage, else text chunks",
    "ids": "ids as the worker sent them",
}


def print_report(report: LoadReport, *, console: Console | None = None) -> None:
    """Print latencies, table, errors, and what limits their meaning."""
    out = console or Console(highlight=False)
    loop = f"concurrency {report.concurrency}" if report.concurrency else "arrivals of the trace"
    place = f"at {report.url}" if report.engine is None else f"on engine {report.engine}"
    out.print(
        f"{report.task} {report.model} {place}, {loop}: {report.num_ok} of "
        f"{report.num_requests} requests complete in {report.duration_s:.1f} s",
        markup=False,
        soft_wrap=True,
    )
    if report.num_ok:
        out.print(_latency_table(report))
        out.print(_rate_table(report))
        out.print(f"tokens: {_COUNTING[report.token_counting]}")
    out.print(f"client: {report.client_cpu_s:.2f} s of processor time")
    failed = sum(report.errors.values())
    kinds = ", ".join(f"{kind} x {count}" for kind, count in report.errors.items())
    out.print(f"errors: {failed}" + (f" ({kinds})" if kinds else ""), markup=False, soft_wrap=True)


def _latency_table(report: LoadReport) -> Table:
    table = Table("latency (ms)", "mean", "p50", "p90", "p99", "max")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, summary in _latencies(report):
        if summary.num:
            table.add_row(name, *(f"{value:,.1f}" for value in _values(summary)))
    return table


def _rate_table(report: LoadReport) -> Table:
    table = Table("rate", "per second", "total")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("requests", f"{report.requests_per_s:,.2f}", str(report.num_ok))
    if report.output_tokens:
        table.add_row(
            "output tokens", f"{report.output_tokens_per_s:,.1f}", f"{report.output_tokens:,}"
        )
    table.add_row("input tokens", f"{report.input_tokens_per_s:,.1f}", f"{report.input_tokens:,}")
    return table


def _latencies(report: LoadReport) -> list[tuple[str, LatencySummary]]:
    return [
        ("time to first token", report.ttft),
        ("inter-token", report.inter_token),
        ("end to end", report.e2e),
        ("sent late by", report.send_lag),
    ]


def _values(summary: LatencySummary) -> tuple[float, ...]:
    return (summary.mean_ms, summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.max_ms)
