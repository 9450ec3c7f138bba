"""Two requests before the load: does the server answer, and how many tokens does a word make?"""

from typing import Any

import msgspec

from deepseek.cli.http_client import HttpClient, HttpFailure
from deepseek.cli.load.plan import LoadTask
from deepseek.cli.load.prompts import TokenScale, measure_token_scale
from deepseek.cli.served_models import server_error, unreachable


async def probe(client: HttpClient, *, task: str, model: str) -> TokenScale:
    """Return the server's token scale; raises a `DeepseekError` where it refuses a request."""
    load_task = LoadTask(task)

    async def count_prompt_tokens(text: str) -> int | None:
        body: dict[str, Any] = {"model": model, "input": text}
        if load_task is LoadTask.CHAT:
            messages = [{"role": "user", "content": text}]
            body = {"model": model, "messages": messages, "max_tokens": 1}
        try:
            response = await client.request("POST", load_task.path, body=body)
        except HttpFailure as failure:
            raise unreachable(client, failure) from None
        if response.status != 200:
            raise server_error(response)
        return _prompt_tokens(response.body)

    return await measure_token_scale(count_prompt_tokens)


def _prompt_tokens(body: bytes) -> int | None:
    """Return the server's count; None where it sends none, or streams whatever it is asked."""
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    usage = answer.get("usage") if isinstance(answer, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None
