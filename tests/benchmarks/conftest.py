"""The measures import one another as they do when a benchmark is run: from `benchmarks/` itself."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
