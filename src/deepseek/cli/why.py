"""`deepseek why`: what the batching policy of a model decided last, and on which signals."""

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deepseek.cli.arguments import Subparsers, add_url_argument, positive_int
from deepseek.core.errors import ConfigurationError

if TYPE_CHECKING:
    from deepseek.scheduling.decision_log import ReplayedModel

_DEFAULT_COUNT = 10
_NUM_SHOWN_DIFFERENCES = 5


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "why",
        help="tell why a model is batched as it is: the last decisions and their signals",
        description="Tell the last batching decisions about a model of a running server, with the "
        "signals that led to them; or replay a recorded run (`pools.NAME.decision_record`) and "
        "compare its decisions: exit code 1 where one differs.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help="served model")
    parser.add_argument(
        "-n", "--last", metavar="N", type=positive_int, default=_DEFAULT_COUNT,
        help="decisions to show (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--replay", metavar="FILE", help="replay this decision record instead; needs no server"
    )
    add_url_argument(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print decisions, or what came of a replay."""
    if arguments.replay is not None:
        return _replay(Path(arguments.replay), model=arguments.model, as_json=arguments.json)
    if arguments.model is None:
        raise ConfigurationError(
            "MODEL is missing; name a served model (`GET /v1/models`), or give --replay FILE",
            param="model",
        )
    decisions = asyncio.run(_get_decisions(arguments.url, arguments.model))[-arguments.last :]
    if arguments.json:
        print(json.dumps(decisions, indent=2))
    elif not decisions:
        print(f"{arguments.model}: nothing has been decided yet")
    else:
        for decision in decisions:
            print("\n".join(_lines(decision)))
    return 0


async def _get_decisions(url: str, model: str) -> list[dict[str, Any]]:
    from deepseek.cli.http_client import HttpClient
    from deepseek.cli.served_models import administer

    with HttpClient(url, timeout_s=30.0) as client:
        answer = await administer(client, "GET", f"/admin/decisions/{quote(model)}")
    decisions: list[dict[str, Any]] = answer["data"]
    return decisions


# words


def _lines(decision: Mapping[str, Any]) -> list[str]:
    head = f"{_ago(decision['age_s'])}  {decision['action']}: {decision['reason']}"
    signals = [_signal(name, value) for name, value in decision["signals"].items()]
    return [head, f"    saw: {', '.join(signals)}"] if signals else [head]


def _ago(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s ago"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.1f} h ago"


def _signal(name: str, value: Any) -> str:
    """Return a signal in words: `oldest_wait_s`, 0.3 becomes `oldest wait 300 ms`."""
    words = name.removeprefix("num_").removeprefix("is_")
    shown: Callable[[Any], str] = _plain
    for suffix, with_unit in _UNITS.items():
        if words.endswith(suffix):
            words = words.removesuffix(suffix)
            shown = _plain if value is None else with_unit
    return f"{words.replace('_', ' ')} {shown(value)}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"


def _bytes(value: float) -> str:
    return f"{value / 2**20:.4g} MiB"


def _degrees(value: float) -> str:
    return f"{value:.3g} °C"


def _watts(value: float) -> str:
    return f"{value:.3g} W"


def _plain(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_UNITS: dict[str, Callable[[Any], str]] = {
    "_s": _seconds,
    "_bytes": _bytes,
    "_c": _degrees,
    "_w": _watts,
}


# replay


def _replay(path: Path, *, model: str | None, as_json: bool) -> int:
    from deepseek.scheduling.decision_log import replay

    try:
        with path.open("rb") as lines:
            result = replay(lines)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.message}") from None
    models = {name: m for name, m in result.models.items() if model in (None, name)}
    if not models:
        of = "any model" if model is None else repr(model)
        raise ConfigurationError(
            f"{path}: holds nothing of {of}; it holds: {', '.join(result.models) or 'nothing'}"
        )
    if as_json:
        print(json.dumps({name: _summary(m) for name, m in models.items()}, indent=2))
    else:
        for name, replayed in models.items():
            print("\n".join(_replayed_lines(name, replayed)))
        if result.ended is not None:
            print(f"the record ends before the run did: {result.ended}")
    return 1 if any(m.differences for m in models.values()) else 0


def _summary(model: "ReplayedModel") -> dict[str, Any]:
    return {
        "policies": model.policies,
        "steps": model.num_steps,
        "reports": model.num_reports,
        "decisions": model.num_decisions,
        "differences": [
            {"line": d.line, "recorded": d.recorded, "replayed": d.replayed}
            for d in model.differences
        ],
    }


def _replayed_lines(name: str, model: "ReplayedModel") -> list[str]:
    counts = (
        f"{name} ({', '.join(model.policies)}): {model.num_decisions} decisions on "
        f"{model.num_reports} reports of signals and {model.num_steps} steps"
    )
    if not model.differences:
        return [f"{counts}: the same again"]
    shown = [
        f"    line {d.line}: recorded {_actions(d.recorded)}, now {_actions(d.replayed)}"
        for d in model.differences[:_NUM_SHOWN_DIFFERENCES]
    ]
    more = len(model.differences) - len(shown)
    rest = [f"    and {more} more (--json shows all)"] if more > 0 else []
    return [f"{counts}: {len(model.differences)} reports were decided otherwise", *shown, *rest]


def _actions(decisions: list[dict[str, Any]]) -> str:
    return "; ".join(f"{d['action']} ({d['reason']})" for d in decisions) or "nothing"
