"""The served OpenAPI document holds: schemathesis sends what it allows and what it does not."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.gateway.conftest import Running, running_gateway

pytestmark = pytest.mark.server

NEVER_ENDING = ("stuck", "silent", "crashing")


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_every_answer_is_as_the_document_says(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    async with running_gateway(max_batch_inputs=8, max_n=4) as server:
        for name in NEVER_ENDING:
            del server.deployments.generators[name]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--phases", "coverage,fuzzing", "--max-examples", "25", "--seed", "1"),
            *("--exclude-checks", "positive_data_acceptance", "--no-color"),
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(root),
                "SCHEMATHESIS_HOOKS": "tests.gateway.schemathesis_checks",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        report = output.decode()
        assert process.returncode == 0, report
        assert "Tested: 15" in report  # every route but the document itself
        generated = re.search(r"(\d+) generated", report)
        assert generated is not None
        assert int(generated[1]) > 500
        # The checks saw real answers, not refusals only, and none was a server error.
        page = server.metrics.render().decode()
        for route in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"):
            assert re.search(rf'_requests_total{{code="200",.*route="{route}"}}', page), page
        assert not re.search(r'_requests_total{code="5', page)


async def test_the_document_names_the_models_that_can_answer(running: Running) -> None:
    document = (await running.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]

    def models(name: str) -> set[str | None]:
        return set(schemas[name]["properties"]["model"]["enum"])

    assert "echo" in models("ChatRequest")
    assert "embedder" not in models("ChatRequest")
    assert models("EmbeddingsRequest") == {"embedder", "org/classifier", "tagger"}
    assert models("RerankRequest") == {"embedder"}
    assert models("ClassifyRequest") == {"org/classifier", "tagger"}
    await running.post("/v1/load_lora_adapter", lora_name="sql", lora_path="/adapters/sql")
    document = (await running.http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert "sql" in models("ChatRequest")
    assert models("LoadAdapterRequest") >= {"echo", None}
    assert "sql" not in models("LoadAdapterRequest"), "an adapter does not take adapters"
    assert schemas["ChatRequest"]["additionalProperties"] is False


async def test_every_reference_in_the_document_leads_somewhere(running: Running) -> None:
    response = await running.http.get("/openapi.json")
    names = set(response.json()["components"]["schemas"])
    referred = {part.split('"')[0] for part in response.text.split("#/components/schemas/")[1:]}
    assert referred
    assert referred <= names
