"""`deepseek simulate`: choose batching settings on a recorded trace, without a device."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.cli.arguments import (
    Subparsers,
    duration,
    positive_float,
    positive_int,
)
from deepseek.core.errors import ConfigurationError

if TYPE_CHECKING:
    from deepseek.core.qos import QoS
    from deepseek.scheduling.simulation.requests import Arrival
    from deepseek.scheduling.simulation.simulator import ModelSetup
    from deepseek.scheduling.simulation.step_times import StepTimes

_DEFAULT_LOADS = [0.5, 0.8, 1.0, 1.2]
_DEFAULT_POLICIES = ["slack", "greedy"]
_MODEL = "model"
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
        "--policy", metavar="NAME[:BATCH[:WAIT]]", action="append",
        help="policy, with its min and max batch size and its longest wait, such as "
        f"`fixed:16:100ms`; may be repeated (default: {', '.join(_DEFAULT_POLICIES)})",
    )  # fmt: skip
    parser.add_argument(
        "--ttft", metavar="T", type=duration, default=1.0,
        help="deadline of the first token (default: 1s)",
    )  # fmt: skip
    parser.add_argument(
        "--itl", metavar="T", type=duration, default=0.1,
        help="deadline of the mean time between tokens (default: 100ms)",
    )  # fmt: skip
    parser.add_argument(
        "--max-wait", metavar="T", type=duration, default=0.0,
        help="longest wait of policies that name none (default: 0s)",
    )  # fmt: skip
    parser.add_argument(
        "--late", choices=("relegate", "refuse"), default="relegate",
        help="what becomes of requests that can no longer be in time (default: %(default)s)",
    )  # fmt: skip
    _add_device_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.set_defaults(run=run)


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--step-record", metavar="FILE",
        help="fit step times to this record (`pools.NAME.step_record`); default: "
        "SmolLM2-135M in INT8 on one core",
    )  # fmt: skip
    parser.add_argument("--model", help="whose steps, where the record holds several models'")
    parser.add_argument(
        "--max-step-tokens", metavar="N", type=positive_int, default=192,
        help="as the pool's setting (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-running", metavar="N", type=positive_int, default=64,
        help="as the pool's setting (default: %(default)s)",
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
    from deepseek.scheduling.simulation.capacity import at_rate, capacity
    from deepseek.telemetry.meters import ModelMeter

    policies = [_qos(text, arguments) for text in arguments.policy or _DEFAULT_POLICIES]
    times, error = _step_times(arguments)
    setup = _setup(arguments, times)
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
        print(
            json.dumps({"capacity_per_s": full_per_s, "fit_error": error, "rows": rows}, indent=2)
        )
    else:
        _print(rows, full_per_s=full_per_s, error=error, count=len(setup.arrivals))
    return 0


# what to simulate


def _qos(text: str, arguments: argparse.Namespace) -> "tuple[str, QoS]":
    """Return the policy's name as given, and its settings."""
    from deepseek.core.qos import LateRequests, QoS
    from deepseek.scheduling.batching.registry import check_batching_policy

    name, _, rest = text.partition(":")
    check_batching_policy(name)
    batch, _, wait = rest.partition(":")
    try:
        size = positive_int(batch) if batch else None
        wait_s = duration(wait) if wait else arguments.max_wait
    except argparse.ArgumentTypeError as error:
        raise ConfigurationError(f"--policy {text}: {error}", param="policy") from None
    return text, QoS(
        policy=name,
        min_batch_size=size or 1,
        max_batch_size=size,
        max_wait_s=wait_s,
        ttft_s=arguments.ttft,
        itl_s=arguments.itl,
        late=LateRequests(arguments.late),
    )


def _step_times(arguments: argparse.Namespace) -> "tuple[StepTimes, float | None]":
    """Return the step times, and the error of the fit where there was one."""
    from deepseek.scheduling.simulation.step_times import (
        SMALL_CHAT_ON_ONE_CORE,
        fit_step_times,
        read_step_record,
    )

    if arguments.step_record is None:
        return SMALL_CHAT_ON_ONE_CORE, None
    path = Path(arguments.step_record)
    try:
        with path.open("rb") as lines:
            fit = fit_step_times(read_step_record(lines, model=arguments.model))
    except OSError as error:
        raise ConfigurationError(f"--step-record: {path}: {error.strerror}") from None
    return fit.times, fit.mape


def _setup(arguments: argparse.Namespace, times: "StepTimes") -> "ModelSetup":
    from deepseek.core.qos import QoS
    from deepseek.scheduling.batching.base import StepLimits
    from deepseek.scheduling.simulation.simulator import DEFAULT_KV_TOKENS, ModelSetup

    return ModelSetup(
        name=arguments.model or _MODEL,
        qos=QoS(),
        arrivals=_arrivals(arguments),
        times=times,
        limits=StepLimits(
            max_tokens=arguments.max_step_tokens, max_sequences=arguments.max_running
        ),
        kv_tokens=arguments.kv_tokens or DEFAULT_KV_TOKENS,
        is_encoder=arguments.encoder,
    )


def _arrivals(arguments: argparse.Namespace) -> "list[Arrival]":
    from deepseek.cli.load.traces import read_trace, scale_trace
    from deepseek.scheduling.simulation.requests import Arrival

    rows = scale_trace(
        read_trace(Path(arguments.trace), max_rows=arguments.max_requests),
        max_input_tokens=arguments.max_input_tokens,
        max_output_tokens=arguments.max_output_tokens,
    )
    if len(rows) < 2:
        raise ConfigurationError("--trace: one request is no load; give more", param="trace")
    return [
        Arrival(
            at_s=row.arrival_s,
            prompt_tokens=row.input_tokens,
            output_tokens=1 if arguments.encoder else row.output_tokens,
        )
        for row in rows
    ]


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
