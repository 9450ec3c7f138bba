"""The benchmark `engine_checks`: answers, endurance, and what guessing tokens is worth.

make bench NAME=engine_checks, or one measure: python benchmarks/engine_checks.py --only soak
"""

import sys

from engine_checks_measures.answers import answers
from engine_checks_measures.soak import soak
from engine_checks_measures.speculation import speculation
from suite import Measure, main

NAME = "engine_checks"

MEASURES: dict[str, Measure] = {"answers": answers, "soak": soak, "speculation": speculation}


if __name__ == "__main__":
    sys.exit(main(NAME, MEASURES, description=__doc__))
