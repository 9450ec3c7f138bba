"""The benchmark `headline`: one worker for all models, beside a fixed-batch server per model.

make bench NAME=headline
"""

import sys

from headline_measures.comparison import headline
from suite import Measure, main

NAME = "headline"

MEASURES: dict[str, Measure] = {"headline": headline}


if __name__ == "__main__":
    sys.exit(main(NAME, MEASURES, description=__doc__))
