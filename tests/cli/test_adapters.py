"""`deepseek adapters` against a real gateway."""

import asyncio

import pytest

from deepseek.cli.main import main
from tests.gateway.conftest import running_gateway

pytestmark = pytest.mark.server


async def test_an_adapter_is_loaded_listed_replaced_and_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with running_gateway() as server:

        async def run(*arguments: str) -> tuple[int, str]:
            code = await asyncio.to_thread(main, ["adapters", *arguments, "--url", server.url])
            captured = capsys.readouterr()
            return code, captured.out + captured.err

        assert await run("list") == (0, "")
        load = ("load", "sql", "/adapters/sql", "--model", "small")
        assert await run(*load) == (0, "loaded sql\n")
        assert await run("list") == (0, "sql\tsmall\tready\n")
        assert await run(*load) == (2, "error: adapter 'sql' is loaded already\n")
        assert await run(*load, "--replace") == (0, "loaded sql\n")
        assert await run("drop", "sql") == (0, "dropped sql\n")
        assert await run("drop", "sql") == (2, "error: no adapter 'sql' is loaded\n")


def test_no_server_is_exit_2_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapters", "drop", "x", "--url", "http://127.0.0.1:1"]) == 2
    assert "start a server with `deepseek serve`" in capsys.readouterr().err
