"""Where a served model is, asked from outside."""

import asyncio
import json
import time

from serving_measures.platform import MeasurementFailed

from deepseek.cli.http_client import HttpClient

_PATIENCE_S = 60.0


async def until_residency(client: HttpClient, model: str, wanted: str) -> None:
    """Wait until a model is `disk`, `ready`, ..."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        response = await client.request("GET", f"/v1/models/{model}")
        if json.loads(response.body).get("residency") == wanted:
            return
        await asyncio.sleep(0.05)
    raise MeasurementFailed(f"model {model} did not become {wanted} within {_PATIENCE_S:g} s")
