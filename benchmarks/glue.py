"""The benchmark `glue`: what mixed precision costs a classifier on SST-2, and what it gains.

make bench NAME=glue
"""

import sys

from glue_measures.sst2 import sst2
from suite import Measure, main

NAME = "glue"

MEASURES: dict[str, Measure] = {"sst2": sst2}


if __name__ == "__main__":
    sys.exit(main(NAME, MEASURES, description=__doc__))
