"""What benchmarks of several measures share: choosing them, running each, the exit code.

One failed measure must not lose the rows of the others; only a full run writes the results file.
"""

import argparse
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from frame import Row, finish, print_rows, progress_bar
from serving_measures.platform import Run

Measure = Callable[[Run], list[Row]]


def parser(measures: Mapping[str, Measure], *, description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every suite takes; `arguments.only` is None for a full run."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument(
        "--only", action="append", choices=measures, help="run this measure; may be repeated"
    )
    result.add_argument(
        "--quick", action="store_true", help="a short form that shows whether the measures work"
    )
    result.add_argument(
        "--save-as", metavar="NAME", help="write a partial run's rows too, to results/NAME.json"
    )
    return result


def main(
    name: str,
    measures: Mapping[str, Measure],
    *,
    description: str | None,
    details: Mapping[str, Any] | None = None,
) -> int:
    """Run a suite that takes what every suite takes; return the exit code.

    The results file is written by a full run only, with the `details` that its measures fill in.
    """
    arguments = parser(measures, description=description).parse_args()
    chosen = {key: measures[key] for key in arguments.only or measures}
    return run_measures(
        name,
        chosen,
        quick=arguments.quick,
        is_full=chosen.keys() == measures.keys(),
        save_as=arguments.save_as,
        details=details,
    )


def run_measures(
    name: str,
    measures: Mapping[str, Measure],
    *,
    quick: bool,
    is_full: bool,
    save_as: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> int:
    """Run the measures, show their rows and return the exit code; a full run writes the file.

    A partial run is written under the name `save_as`, where there is one. `details` may be filled
    by the measures while they run.
    """
    # A run that is told to end leaves no server behind: `with` blocks end on this as on any error.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(prefix="deepseek-bench-") as directory,
        progress_bar(name, total=len(measures)) as bar,
    ):
        run = Run(work=Path(directory), quick=quick)
        for measure_name, measure in measures.items():
            bar.step(measure_name)
            rows += _measured(measure_name, measure, run)
            bar.done()
    if is_full and not quick:
        return finish(name, rows, details=details)
    if save_as is not None:
        return finish(save_as, rows, details=details)
    print_rows(name, rows)
    return 1 if any(row.holds is False for row in rows) else 0


def _measured(name: str, measure: Measure, run: Run) -> list[Row]:
    try:
        return measure(run)
    except Exception as error:  # noqa: BLE001 - one failed measure must not lose the others' rows
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return [Row(measure=f"{name}: {reason}", ours="failed", target="runs", holds=False)]
