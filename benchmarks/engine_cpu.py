"""The benchmark `engine_cpu`: our engine on a processor beside the engines people use there.

make bench NAME=engine_cpu, or a part of it: python benchmarks/engine_cpu.py --only chat-two-cores
"""

import sys
from functools import partial
from typing import Any

from engine_measures.chat import chat
from engine_measures.contestants import CONTESTANTS
from engine_measures.embeddings import embeddings
from engine_measures.placement import one_core, shared_cores
from suite import Measure, parser, run_measures

NAME = "engine_cpu"


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    details: dict[str, Any] = {}
    options = parser(_measures(None, details), description=main.__doc__)
    options.add_argument(
        "--server",
        action="append",
        choices=CONTESTANTS,
        help="measure this chat server; may be repeated; default: all",
    )
    arguments = options.parse_args()
    measures = _measures(arguments.server, details)
    chosen = {name: measures[name] for name in arguments.only or measures}
    return run_measures(
        NAME,
        chosen,
        quick=arguments.quick,
        is_full=arguments.only is None and arguments.server is None,
        save_as=arguments.save_as,
        details=details,
    )


def _measures(servers: list[str] | None, details: dict[str, Any]) -> dict[str, Measure]:
    measure = partial(chat, names=servers, details=details)
    return {
        "chat-two-cores": lambda run: measure(run, shared_cores()),
        "chat-one-core": lambda run: measure(run, one_core()),
        "embeddings": embeddings,
    }


if __name__ == "__main__":
    sys.exit(main())
