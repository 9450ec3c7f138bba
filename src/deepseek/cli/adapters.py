"""`deepseek adapters`: list, load and drop the LoRA adapters of a running server."""

import argparse
import asyncio
from typing import Any

from deepseek.cli.arguments import Subparsers, add_url_argument


def register(commands: Subparsers) -> None:
    """Add the command's parser."""
    adapters = commands.add_parser(
        "adapters",
        help="list, load and drop LoRA adapters of a running server",
        description="LoRA adapters of a running server; docs/lora.md says which can be served.",
    )
    actions = adapters.add_subparsers(required=True, metavar="COMMAND")
    listing = actions.add_parser("list", help="show each adapter and its deployment")
    listing.set_defaults(run=list_adapters)
    loading = actions.add_parser("load", help="serve an adapter under a name of its own")
    loading.add_argument("name", metavar="NAME", help="what requests are to send as `model`")
    loading.add_argument(
        "path", metavar="PATH", help="the adapter's directory on the server, below an adapter_dirs"
    )
    loading.add_argument("--model", metavar="NAME", help="the deployment, where several could be")
    loading.add_argument(
        "--replace", action="store_true", help="replace an adapter that has the name"
    )
    loading.set_defaults(run=load_adapter)
    dropping = actions.add_parser("drop", help="serve an adapter to no new request")
    dropping.add_argument("name", metavar="NAME")
    dropping.set_defaults(run=drop_adapter)
    for action in (listing, loading, dropping):
        add_url_argument(action)


def list_adapters(arguments: argparse.Namespace) -> int:
    """Print one line per adapter: its name, its deployment, whether it answers."""
    served = asyncio.run(_get_models(arguments.url))
    for model in served:
        if model.get("parent"):
            state = "ready" if model.get("ready") else "not ready"
            print(f"{model['id']}\t{model['parent']}\t{state}")
    return 0


def load_adapter(arguments: argparse.Namespace) -> int:
    """Have the server load an adapter."""
    body: dict[str, Any] = {"lora_name": arguments.name, "lora_path": arguments.path}
    if arguments.replace:
        body["load_inplace"] = True
    if arguments.model is not None:
        body["model"] = arguments.model
    asyncio.run(_post(arguments.url, "/v1/load_lora_adapter", body))
    print(f"loaded {arguments.name}")
    return 0


def drop_adapter(arguments: argparse.Namespace) -> int:
    """Have the server drop an adapter."""
    asyncio.run(_post(arguments.url, "/v1/unload_lora_adapter", {"lora_name": arguments.name}))
    print(f"dropped {arguments.name}")
    return 0


async def _get_models(url: str) -> list[dict[str, Any]]:
    from deepseek.cli.http_client import HttpClient
    from deepseek.cli.served_models import get_json

    with HttpClient(url) as client:
        return (await get_json(client, "/v1/models")).get("data") or []


async def _post(url: str, path: str, body: dict[str, Any]) -> None:
    """Have the server do something; raises a `DeepseekError` with its own words."""
    from deepseek.cli.http_client import HttpClient, HttpFailure
    from deepseek.cli.served_models import server_error, unreachable

    with HttpClient(url) as client:
        try:
            response = await client.request("POST", path, body=body)
        except HttpFailure as failure:
            raise unreachable(client, failure) from None
    if response.status != 200:
        raise server_error(response)
