"""One streamed chat completion, as the terminal needs it."""

from collections.abc import Callable
from typing import Any

import msgspec

from deepseek.cli.http_client import HttpClient, HttpFailure
from deepseek.cli.served_models import server_error, unreachable, wire_error
from deepseek.core.errors import DeepseekError, EngineFault, Unavailable


async def stream_chat(
    client: HttpClient, body: dict[str, Any], on_text: Callable[[str], None]
) -> None:
    """Pass the answer's text to `on_text` as it arrives; raises a `DeepseekError`."""
    failed: list[DeepseekError] = []
    done = False

    def on_event(data: bytes) -> None:
        nonlocal done
        if data == b"[DONE]":
            done = True
            return
        chunk = msgspec.json.decode(data)
        error = wire_error(chunk)
        if error is not None:
            failed.append(error)
            return
        for choice in chunk.get("choices") or ():
            text = (choice.get("delta") or {}).get("content")
            if text:
                on_text(text)

    try:
        response = await client.request(
            "POST", "/v1/chat/completions", body={**body, "stream": True}, on_event=on_event
        )
    except HttpFailure as failure:
        raise unreachable(client, failure) from None
    except (msgspec.DecodeError, AttributeError):
        raise EngineFault(f"{client.url} sent an event that is not a chat completion") from None
    if failed:
        raise failed[0]
    if response.status != 200:
        raise server_error(response)
    if not done:
        raise Unavailable("the answer ended early: the server closed the stream before [DONE]")
