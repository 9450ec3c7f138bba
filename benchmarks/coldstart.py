"""The benchmark `coldstart`: models that are not loaded when a request comes.

make bench NAME=coldstart
"""

import sys

from coldstart_measures.cancelling import cancelling
from coldstart_measures.first_token import first_token
from coldstart_measures.many_models import many_models
from suite import Measure, main

NAME = "coldstart"
MEASURES: dict[str, Measure] = {
    "first-token": first_token,
    "cancelling": cancelling,
    "many-models": many_models,
}

if __name__ == "__main__":
    sys.exit(main(NAME, MEASURES, description=__doc__))
