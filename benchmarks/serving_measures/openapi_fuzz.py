"""schemathesis against the served OpenAPI document: valid and invalid requests, no 5xx."""

import sys
from collections import Counter
from typing import Any

import requests
import schemathesis
from frame import Row, bound, fact
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok

from serving_measures.platform import MeasurementFailed, Run, serve, write_deployment

_DOCUMENT = "/openapi.json"
_NO_ANSWER = 0
_TIMEOUT_S = 120.0
_SEED = 20240601


def openapi_fuzz(run: Run) -> list[Row]:
    """Send generated requests of every operation, valid ones and broken ones, and count statuses.

    Answers are kept short by the deployment file, for a valid request may ask for any length.
    """
    file = write_deployment(
        run.work / "openapi.yaml", chat={"max_model_len": 128, "default_max_tokens": 4}
    )
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    with serve(run, file, name="openapi") as platform:
        schema = schemathesis.openapi.from_url(f"{platform.url}{_DOCUMENT}")
        operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
        paths = schema.raw_schema["paths"]
        # schemathesis leaves out the document itself, which it has just read.
        num_operations = sum(len(paths[path]) for path in paths if path != _DOCUMENT)
        if not operations or len(operations) != num_operations:
            raise MeasurementFailed(f"of {num_operations} operations {len(operations)} can be read")
        for operation in operations:
            for mode in schemathesis.GenerationMode:
                _send_generated(operation, mode, statuses, failures, max_examples=run.count(40, 5))
    for failure in failures[:5]:
        print(failure, file=sys.stderr)
    num_server_errors = sum(count for status, count in statuses.items() if status >= 500)
    num_lost = statuses.pop(_NO_ANSWER, 0)
    return [
        bound(
            f"schemathesis, {len(operations)} operations: answers with 5xx",
            num_server_errors,
            at_most=0,
        ),
        bound("- schemathesis: requests without an answer", num_lost, at_most=0),
        *(fact(f"- schemathesis: answers with {status}", statuses[status]) for status in statuses),
    ]


def _send_generated(
    operation: schemathesis.APIOperation[Any, Any, Any, Any],
    mode: schemathesis.GenerationMode,
    statuses: Counter[int],
    failures: list[str],
    *,
    max_examples: int,
) -> None:
    """Send up to `max_examples` requests of one kind to one operation."""

    @seed(_SEED)
    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case[Any]) -> None:
        try:
            status = case.call(timeout=_TIMEOUT_S).status_code
        except requests.RequestException as error:
            status = _NO_ANSWER
            failures.append(f"{type(error).__name__} for {case.as_curl_command()[:2000]}")
        statuses[status] += 1
        if status >= 500:
            failures.append(f"{status} for {case.as_curl_command()[:2000]}")

    try:
        send()
    except Unsatisfiable:
        if mode is schemathesis.GenerationMode.POSITIVE:
            raise
        # An operation without parameters has nothing that could be wrong.
