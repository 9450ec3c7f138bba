"""What a running server serves, for the commands that talk to one."""

from typing import Any

import msgspec

from deepseek.cli.http_client import HttpClient, HttpFailure, HttpResponse
from deepseek.core.errors import (
    ConfigurationError,
    DeepseekError,
    EngineFault,
    ModelNotFound,
    Unavailable,
    error_from_wire,
)


async def choose_model(client: HttpClient, *, model: str | None, task: str) -> str:
    """Return `model`, or the first served model of the task (`generate`, `embed`, `classify`).

    A server that does not tell tasks is taken to serve the first model for any. Raises a
    `DeepseekError` where nothing answers or nothing fits.
    """
    served: list[dict[str, Any]] = (await get_json(client, "/v1/models")).get("data") or []
    names = [str(entry.get("id")) for entry in served]
    if model is not None:
        if names and model not in names:
            raise ModelNotFound(
                f"--model: {client.url} serves no {model!r}; it serves: {', '.join(names)}",
                param="model",
            )
        return model
    for entry in served:
        if entry.get("task", task) == task:
            return str(entry["id"])
    raise ModelNotFound(
        f"{client.url} serves no model of task {task!r}; it serves: {', '.join(names) or 'none'}",
        param="model",
    )


async def get_json(client: HttpClient, path: str) -> dict[str, Any]:
    """Return a JSON object; raises a `DeepseekError` that says what is wrong with the server."""
    try:
        response = await client.request("GET", path)
    except HttpFailure as failure:
        raise unreachable(client, failure) from None
    if response.status != 200:
        raise server_error(response)
    try:
        return msgspec.json.decode(response.body, type=dict[str, Any])
    except msgspec.DecodeError:
        raise ConfigurationError(
            f"--url: {client.url} answers {path} with something else than a JSON object; is it an "
            "OpenAI-compatible server?",
            param="url",
        ) from None


async def administer(client: HttpClient, method: str, path: str, *, body: Any = None) -> Any:
    """Ask a route under `/admin`; raises a `DeepseekError` with the server's words or a remedy."""
    try:
        response = await client.request(method, path, body=body)
    except HttpFailure as failure:
        raise unreachable(client, failure) from None
    if response.status != 200:
        error = server_error(response)
        if response.status == 404 and not isinstance(error, ModelNotFound):
            raise ConfigurationError(
                f"--url: {client.url} has no routes under /admin; where others reach the server "
                "they are off unless its file says `gateway: {admin: true}`",
                param="url",
            )
        raise error
    return msgspec.json.decode(response.body)


def unreachable(client: HttpClient, failure: HttpFailure) -> DeepseekError:
    """Return the error to show when the exchange itself failed."""
    if failure.kind in ("connection refused", "connection failed"):
        return ConfigurationError(
            f"--url: {failure}; start a server with `deepseek serve`, or name another", param="url"
        )
    return Unavailable(f"{client.url}: {failure}")


def server_error(response: HttpResponse) -> DeepseekError:
    """Return the server's own words about a request that it refused."""
    try:
        body = msgspec.json.decode(response.body)
    except msgspec.DecodeError:
        body = None
    return wire_error(body) or EngineFault(f"the server answered with status {response.status}")


def wire_error(body: Any) -> DeepseekError | None:
    """Return the error in an OpenAI-shaped object, if it holds one."""
    error = body.get("error") if isinstance(body, dict) else None
    if error is None:
        return None
    if not isinstance(error, dict):
        return EngineFault(str(error))
    message = str(error.get("message") or "the server gave no reason")
    return error_from_wire(str(error.get("code")), message)
