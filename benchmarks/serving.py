"""The benchmark `serving`: what the platform promises of one machine, measured on this one.

make bench NAME=serving, or with one measure only: python benchmarks/serving.py --only crash
"""

import sys

from serving_measures.crash import crash
from serving_measures.disconnects import disconnects
from serving_measures.gateway_cost import gateway_cost
from serving_measures.mix import mix
from serving_measures.openapi_fuzz import openapi_fuzz
from serving_measures.start import first_start, second_start
from serving_measures.throughput import throughput
from suite import Measure, parser, run_measures

NAME = "serving"

MEASURES: dict[str, Measure] = {
    "second-start": second_start,
    "throughput": throughput,
    "mix": mix,
    "crash": crash,
    "disconnects": disconnects,
    "gateway-cost": gateway_cost,
    "openapi": openapi_fuzz,
}


def main() -> int:
    """Run the measures and show their rows; the results file is written by a full run only."""
    options = parser(MEASURES, description=main.__doc__)
    options.add_argument(
        "--first-start",
        action="store_true",
        help="measure a fresh clone's `make serve`, downloads included (minutes)",
    )
    arguments = options.parse_args()
    measures = {name: MEASURES[name] for name in arguments.only or MEASURES}
    is_full = arguments.only is None and not arguments.first_start
    if arguments.first_start:
        measures = {"first-start": first_start, **(measures if arguments.only else {})}
    return run_measures(NAME, measures, quick=arguments.quick, is_full=is_full)


if __name__ == "__main__":
    sys.exit(main())
