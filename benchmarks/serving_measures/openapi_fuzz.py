"""schemathesis against the served OpenAPI document: valid and invalid requests, no 5xx."""

from collections import Counter

import schemathesis
from frame import Row, bound, fact
from hypothesis import HealthCheck, Phase, given, seed, settings

from serving_measures.platform import MeasurementFailed, Run, serve, write_deployment

_TIMEOUT_S = 60.0
_SEED = 20240601


def openapi_fuzz(run: Run) -> list[Row]:
    """Send generated requests of every operation, valid ones and broken ones, and count statuses.

    Answers are kept short (`max_model_len`), for a valid request may ask for any length.
    """
    file = write_deployment(run.work / "openapi.yaml", chat={"max_model_len": 128})
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    with serve(run, file, name="openapi") as platform:
        schema = schemathesis.openapi.from_url(f"{platform.url}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        for operation in operations:
            for mode in schemathesis.GenerationMode:
                _send_generated(operation, mode, statuses, failures, max_examples=run.count(40, 5))
    if not operations:
        raise MeasurementFailed("the OpenAPI document has no operations")
    for failure in failures[:5]:
        print(f"5xx: {failure}")
    num_server_errors = sum(count for status, count in statuses.items() if status >= 500)
    counts = sorted(statuses.items())
    return [
        bound(
            f"schemathesis, {len(operations)} operations: answers with 5xx",
            num_server_errors,
            at_most=0,
        ),
        *(fact(f"- schemathesis: answers with {status}", count) for status, count in counts),
    ]


def _send_generated(
    operation: schemathesis.APIOperation,
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
    def send(case: schemathesis.Case) -> None:
        status = case.call(timeout=_TIMEOUT_S).status_code
        statuses[status] += 1
        if status >= 500:
            failures.append(f"{status} for {case.as_curl_command()[:2000]}")

    send()
