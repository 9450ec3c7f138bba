"""The benchmark `switching`: INT8 and INT4 from one copy of weights, chosen per request.

make bench NAME=switching, or a part of it: python benchmarks/switching.py --only one-core
"""

import sys
from typing import Any

import suite
from engine_measures.placement import one_core, shared_cores
from switching_measures.chats import chats
from switching_measures.memory import memory

NAME = "switching"


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    details: dict[str, Any] = {}
    measures = {
        "memory": memory,
        "one-core": lambda run: chats(run, one_core(), details=details),
        "two-cores": lambda run: chats(run, shared_cores(), details=details),
    }
    return suite.main(NAME, measures, description=__doc__, details=details)


if __name__ == "__main__":
    sys.exit(main())
