"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM names them."""

import msgspec

from deepseek.gateway.body import BodyDecoder, read_json_body
from deepseek.gateway.exchange import Exchange
from deepseek.gateway.operations import model_body
from deepseek.gateway.parts import Parts
from deepseek.gateway.protocol_operations import (
    DROP_REFUSED,
    DropAdapterRequest,
    DroppedAdapter,
    LoadAdapterRequest,
)

_encode = msgspec.json.Encoder().encode


class LoadAdapterRoute:
    """Serves one more adapter."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoder = BodyDecoder(LoadAdapterRequest)

    async def __call__(self, exchange: Exchange) -> None:
        body = await read_json_body(exchange, self._parts.settings)
        await exchange.attend(self._answer(exchange, self._decoder.decode(body)))

    async def _answer(self, exchange: Exchange, request: LoadAdapterRequest) -> None:
        status = await self._parts.deployments.load_adapter(
            request.lora_name,
            request.lora_path,
            deployment=request.model,
            replace=bool(request.load_inplace),
        )
        exchange.model = status.parent
        await exchange.answer(_encode(model_body(status)))


class DropAdapterRoute:
    """Serves one adapter less."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoder = BodyDecoder(DropAdapterRequest, refused=DROP_REFUSED)

    async def __call__(self, exchange: Exchange) -> None:
        body = await read_json_body(exchange, self._parts.settings)
        await exchange.attend(self._answer(exchange, self._decoder.decode(body)))

    async def _answer(self, exchange: Exchange, request: DropAdapterRequest) -> None:
        await self._parts.deployments.drop_adapter(request.lora_name)
        await exchange.answer(_encode(DroppedAdapter(id=request.lora_name)))
