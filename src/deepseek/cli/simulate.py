"""`deepseek simulate`: choose batching settings on a recorded trace, without a device."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from deepseek.cli.arguments import (
    Subparsers,
    duration,
    positive_float,
    positive_int,
)

if TYPE_CHECKING:
    from deepseek.scheduling.simulation.simulator import ModelSetup

_DEFAULT_LOADS = [0.5, 0.8, 1.0, 1.2]
_TABLE_WIDTH = 110
"""Of a row, which must stay one line in a file too."""


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "simulate",
        help="compare batching policies on a recorded trace, with a virtual clock",
        description="Run batching policies on the arrivals of a trace, with a virtual clock and "
        "step times fitted to a worker's step record; print what each would achieve.",
    )
    parser.add_argument(
        "--trace", metavar="FILE", required=True,
        help="arrivals and lengths: Azure LLM inference CSV, or Mooncake JSONL",
    )  # fmt: skip
    parser.add_argument(
        "--load", metavar="X", type=positive_float, action="append",
        help="arrivals as a part of what the device can serve; may be repeated (default: "
        f"{', '.join(map(str, _DEFAULT_LOADS))})",
    )  # fmt: skip
    parser.add_argument(
        "-f", "--file", metavar="FILE",
        help="deployment file, for the settings of --model and its pool; options are over them",
    )  # fmt: skip
    parser.add_argument(
        "--model",
        help="which model of the deployment file, and whose steps of the record; needed where "
        "there are several",
    )
    _add_policy_options(parser)
    _add_device_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=run)


def _add_policy_options(parser: argparse.ArgumentParser) -> None:
    """Add what is compared, and what is promised; None: as the file says, or the default."""
    parser.add_argument(
        "--policy", metavar="NAME[:BATCH[:WAIT]]", action="append",
        help="policy, with its min and max batch size and its longest wait, such as "
        "`fixed:16:100ms`; may be repeated (default: the file's, slack and greedy)",
    )  # fmt: skip
    parser.add_argument(
        "--ttft", metavar="T", type=duration,
        help="deadline of the first token (default: the file's, else 1s)",
    )  # fmt: skip
    parser.add_argument(
        "--itl", metavar="T", type=duration,
        help="deadline of the mean time between tokens (default: the file's, else 100ms)",
    )  # fmt: skip
    parser.add_argument(
        "--max-wait", metavar="T", type=duration,
        help="longest wait of policies that name none (default: the file's, else 0s)",
    )  # fmt: skip
    parser.add_argument(
        "--late", choices=("relegate", "refuse"),
        help="what becomes of requests that can no longer be in time (default: the file's, else "
        "relegate)",
    )  # fmt: skip


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    times = parser.add_mutually_exclusive_group()
    times.add_argument(
        "--step-record", metavar="FILE",
        help="fit step times to this record (`pools.NAME.step_record`); default: "
        "SmolLM2-135M in INT8 on one core",
    )  # fmt: skip
    times.add_argument(
        "--step-times", metavar="FILE",
        help="step times fitted before: the `step_times` of what --json printed",
    )  # fmt: skip
    parser.add_argument(
        "--max-step-tokens", metavar="N", type=positive_int,
        help="as the pool's setting (default: the file's, else 128, for encoders 512)",
    )  # fmt: skip
    parser.add_argument(
        "--max-running", metavar="N", type=positive_int,
        help="as the pool's setting (default: the file's, else 64)",
    )  # fmt: skip
    parser.add_argument(
        "--kv-tokens", metavar="N", type=positive_int, help="tokens that the KV cache holds"
    )
    parser.add_argument(
        "--encoder", action="store_true", help="requests need one step and have no answer tokens"
    )
    parser.add_argument(
        "--max-requests", metavar="N", type=positive_int, help="take only the first N rows"
    )
    parser.add_argument(
        "--max-input-tokens", metavar="N", type=positive_int, default=1024,
        help="multiply all prompt lengths so that the longest is N (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-output-tokens", metavar="N", type=positive_int, default=128,
        help="multiply all answer lengths so that the longest is N (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the noise in step times"
    )


def run(arguments: argparse.Namespace) -> int:
    """Simulate every policy at every load and print what came of it."""
    from deepseek.cli.simulation_setup import compared_policies, model_setup, step_times
    from deepseek.scheduling.simulation.capacity import at_rate, capacity
    from deepseek.telemetry.meters import ModelMeter

    times, error = step_times(arguments)
    setup = model_setup(arguments, times)
    policies = compared_policies(arguments.policy, setup.qos)
    full_per_s = capacity(setup, make_meter=ModelMeter)
    loads: Sequence[float] = arguments.load or _DEFAULT_LOADS
    rows = [
        {
            "load": load,
            "policy": name,
            **_simulated(replace(setup, qos=qos, arrivals=arrivals), seed=arguments.seed),
        }
        for load in loads
        for arrivals in (at_rate(setup.arrivals, load * full_per_s),)
        for name, qos in policies
    ]
    if arguments.json:
        result = {
            "capacity_per_s": full_per_s,
            "step_times": asdict(times),
            "fit_error": error,
            "rows": rows,
        }
        print(json.dumps(result, indent=2))
    else:
        _print(rows, full_per_s=full_per_s, error=error, count=len(setup.arrivals))
    return 0


# what came of it


def _simulated(setup: "ModelSetup", *, seed: int) -> dict[str, Any]:
    from deepseek.scheduling.simulation.simulator import simulate
    from deepseek.telemetry.meters import ModelMeter

    outcome = simulate([setup], make_meter=ModelMeter, seed=seed)
    model = outcome.models[setup.name]
    return {
        "attainment": model.attainment(ttft_s=setup.qos.ttft_s, itl_s=setup.qos.itl_s),
        "utilization": outcome.utilization,
        "busy_s": outcome.busy_s,
        "duration_s": outcome.duration_s,
        "ttft_p50_s": _finite(model.ttft_percentile(50)),
        "ttft_p99_s": _finite(model.ttft_percentile(99)),
        "itl_p50_s": _finite(model.itl_percentile(50)),
        "itl_p99_s": _finite(model.itl_percentile(99)),
        "steps": model.num_steps,
        "refused": model.num_refused,
        "preemptions": model.num_preemptions,
        "decisions": len(model.decisions),
    }


def _finite(seconds: float) -> float | None:
    """Return None for what JSON has no number for: nothing was answered, or nobody at all."""
    return seconds if 0 <= seconds < float("inf") else None


def _print(
    rows: Sequence[dict[str, Any]], *, full_per_s: float, error: float | None, count: int
) -> None:
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False)
    out.width = max(out.width, _TABLE_WIDTH)
    fit = "" if error is None else f"; step times fitted with an error of {error:.1%}"
    out.print(f"{count} requests; full load is {full_per_s:.2f} requests/s{fit}", soft_wrap=True)
    table = Table("load", "policy")
    for column in (
        "in time",
        "device time",
        "used",
        "TTFT p50",
        "p99",
        "ITL p50",
        "p99",
        "refused",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row['load']:g}",
            row["policy"],
            f"{row['attainment']:.2%}",
            f"{row['busy_s']:,.1f} s",
            f"{row['utilization']:.0%}",
            *(
                _milliseconds(row[f"{name}_s"])
                for name in ("ttft_p50", "ttft_p99", "itl_p50", "itl_p99")
            ),
            str(row["refused"]),
        )
    out.print(table)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.0f} ms"
