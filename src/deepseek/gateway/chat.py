"""`POST /v1/chat/completions`."""

from collections.abc import Sequence
from typing import Any

import msgspec

from deepseek.core.errors import InvalidRequest
from deepseek.gateway.body import BodyDecoder, read_json_body
from deepseek.gateway.chat_answers import ChatEvents, chat_completion
from deepseek.gateway.constraints import response_grammar
from deepseek.gateway.exchange import Exchange
from deepseek.gateway.generation import Generation, Meter, gather, stream
from deepseek.gateway.inputs import offload
from deepseek.gateway.parts import Parts
from deepseek.gateway.precision import choose_precision
from deepseek.gateway.protocol_base import TokenCount
from deepseek.gateway.protocol_chat import (
    CHAT_REFUSED,
    AnswerPart,
    AssistantMessage,
    ChatRequest,
    DeveloperMessage,
    Message,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolMessage,
)
from deepseek.gateway.sampling import check_generation, generate_options, token_budget
from deepseek.gateway.tool_use import ToolUse, plan_tools
from deepseek.serving.base import GenerateDeployment


class ChatRoute:
    """Answers chats."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoder = BodyDecoder(ChatRequest, refused=CHAT_REFUSED)

    async def __call__(self, exchange: Exchange) -> None:
        body = await read_json_body(exchange, self._parts.settings)
        request = self._decoder.decode(body)
        await exchange.attend(self._answer(exchange, request, num_bytes=len(body)))

    async def _answer(self, exchange: Exchange, request: ChatRequest, *, num_bytes: int) -> None:
        deployment = self._parts.deployments.generator(request.model)
        exchange.model = deployment.deployment_name
        _check(request, max_n=self._parts.settings.max_n)
        grammar = response_grammar(request.response_format)
        if grammar is not None:
            deployment.check_grammar(grammar, param="response_format")
        tools = plan_tools(request, deployment)
        if tools is not None and tools.grammar is not None:
            grammar = tools.grammar
        prompt = await _prompt(request, deployment, tools, num_bytes=num_bytes)
        generation = _generation(request, deployment, prompt, grammar)
        metrics = self._parts.metrics.model(deployment.deployment_name)
        meter = Meter(generation, metrics, started_at=exchange.started_at)
        if request.stream:
            options = request.stream_options
            shape = ChatEvents(
                deployment.name,
                n=generation.options.n,
                tools=tools,
                include_usage=bool(options and options.include_usage),
            )
            await stream(exchange, generation, shape, meter)
            return
        answers = await gather(generation, meter)
        await exchange.answer(
            chat_completion(
                deployment.name,
                answers,
                meter.usage,
                tools=tools,
                with_logprobs=bool(request.logprobs),
            ),
            headers=generation.headers,
        )


def _check(request: ChatRequest, *, max_n: int) -> None:
    check_generation(request, max_n=max_n)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs: needs `logprobs: true`", param="top_logprobs")
    for index, message in enumerate(request.messages):
        if (
            isinstance(message, AssistantMessage)
            and message.content is None
            and not message.tool_calls
            and message.refusal is None
        ):
            raise InvalidRequest(
                f"messages[{index}].content: an assistant message needs `content` or `tool_calls`",
                param=f"messages[{index}].content",
            )


async def _prompt(
    request: ChatRequest,
    deployment: GenerateDeployment,
    tools: ToolUse | None,
    *,
    num_bytes: int,
) -> list[int]:
    return await offload(
        num_bytes,
        deployment.render_chat,
        [_for_template(message) for message in request.messages],
        tools=None if tools is None else tools.definitions,
        template_kwargs=request.chat_template_kwargs,
    )


def _generation(
    request: ChatRequest, deployment: GenerateDeployment, prompt: list[int], grammar: str | None
) -> Generation:
    asked, param = _asked_tokens(request)
    max_tokens = token_budget(
        deployment,
        longest_prompt=len(prompt),
        asked=asked,
        default=deployment.default_max_tokens,
        prompt_param="messages",
        budget_param=param,
    )
    choice = choose_precision(request, deployment, [prompt], max_tokens=max_tokens)
    options = generate_options(
        request,
        max_tokens=max_tokens,
        precision=None if choice is None else choice.precision,
        num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        defaults=deployment.sampling_defaults,
        grammar=grammar,
    )
    return Generation(deployment=deployment, prompts=[prompt], options=options, precision=choice)


def _asked_tokens(request: ChatRequest) -> tuple[TokenCount | None, str]:
    """Return the limit that was asked for, and the field's name: OpenAI renamed it."""
    new, old = request.max_completion_tokens, request.max_tokens
    if new is None:
        return old, "max_tokens"
    if old is not None and old != new:
        raise InvalidRequest(
            f"max_tokens: {old} contradicts max_completion_tokens={new}; send one of them",
            param="max_tokens",
        )
    return new, "max_completion_tokens"


def _for_template(message: Message) -> dict[str, Any]:
    """Return a message as chat templates know it."""
    out: dict[str, Any]
    if isinstance(message, SystemMessage | DeveloperMessage):
        out = {"role": "system", "content": _text(message.content)}
    elif isinstance(message, AssistantMessage):
        content = message.refusal if message.content is None else message.content
        out = {"role": "assistant", "content": _text(content or "")}
        if message.tool_calls:
            out["tool_calls"] = msgspec.to_builtins(message.tool_calls)
        if message.reasoning_content is not None:
            out["reasoning_content"] = message.reasoning_content
    elif isinstance(message, ToolMessage):
        out = {
            "role": "tool",
            "content": _text(message.content),
            "tool_call_id": message.tool_call_id,
        }
    else:
        out = {"role": "user", "content": _text(message.content)}
    if message.name is not None:
        out["name"] = message.name
    return out


def _text(content: str | Sequence[TextPart | AnswerPart | RefusalPart]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(
        part.refusal if isinstance(part, RefusalPart) else part.text for part in content
    )
