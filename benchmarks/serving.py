"""The benchmark `serving`: what the platform promises of one machine, measured on this one.

make bench NAME=serving, or with one measure only: python benchmarks/serving.py --only crash
"""

import argparse
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from frame import Row, finish, print_rows, progress_bar
from serving_measures.crash import crash
from serving_measures.disconnects import disconnects
from serving_measures.gateway_cost import gateway_cost
from serving_measures.mix import mix
from serving_measures.openapi_fuzz import openapi_fuzz
from serving_measures.platform import Run
from serving_measures.start import first_start, second_start
from serving_measures.throughput import throughput

NAME = "serving"
Measure = Callable[[Run], list[Row]]

MEASURES: dict[str, Measure] = {
    "second-start": second_start,
    "throughput": throughput,
    "mix": mix,
    "crash": crash,
    "disconnects": disconnects,
    "gateway-cost": gateway_cost,
    "openapi": openapi_fuzz,
}


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    arguments = _parser().parse_args()
    measures = {name: MEASURES[name] for name in arguments.only or MEASURES}
    if arguments.first_start:
        measures = {"first-start": first_start, **(measures if arguments.only else {})}
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="deepseek-bench-") as directory,
        progress_bar(NAME, total=len(measures)) as bar,
    ):
        run = Run(work=Path(directory), quick=arguments.quick)
        for name, measure in measures.items():
            bar.step(name)
            rows += _measured(name, measure, run)
            bar.done()
    if measures.keys() == MEASURES.keys() and not arguments.quick:
        return finish(NAME, rows)
    print_rows(NAME, rows)
    return 1 if any(row.holds is False for row in rows) else 0


def _measured(name: str, measure: Measure, run: Run) -> list[Row]:
    try:
        return measure(run)
    except Exception as error:  # noqa: BLE001 - one failed measure must not lose the others' rows
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return [Row(measure=f"{name}: {reason}", ours="failed", target="runs", holds=False)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--only", action="append", choices=MEASURES, help="run this measure; may be repeated"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short form that shows whether the measures work"
    )
    parser.add_argument(
        "--first-start",
        action="store_true",
        help="measure a fresh clone's `make serve`, downloads included (minutes)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
