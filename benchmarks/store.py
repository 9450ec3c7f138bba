"""The benchmark `store`: weights from disk into memory, beside the loaders people use.

make bench NAME=store
"""

import sys

from store_measures.digests import digests
from store_measures.loading import load_real, load_synthetic
from store_measures.sharing import sharing
from suite import Measure, main

NAME = "store"
MEASURES: dict[str, Measure] = {
    "digests": digests,
    "sharing": sharing,
    "load-real": load_real,
    "load-synthetic": load_synthetic,
}

if __name__ == "__main__":
    sys.exit(main(NAME, MEASURES, description=__doc__))
