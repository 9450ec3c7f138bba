"""`POST /v1/completions`."""

from deepseek.core.errors import InvalidRequest
from deepseek.gateway.body import BodyDecoder, read_json_body
from deepseek.gateway.completion_answers import CompletionEvents, completion
from deepseek.gateway.exchange import Exchange
from deepseek.gateway.generation import Generation, Meter, gather, stream
from deepseek.gateway.inputs import offload, split_inputs
from deepseek.gateway.parts import Parts
from deepseek.gateway.precision import choose_precision
from deepseek.gateway.protocol_completions import COMPLETION_REFUSED, CompletionRequest
from deepseek.gateway.sampling import check_generation, generate_options, token_budget
from deepseek.serving.base import GenerateDeployment

DEFAULT_MAX_TOKENS = 16
"""As in the OpenAI API; plain completions have no natural end."""


class CompletionsRoute:
    """Continues prompts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._decoder = BodyDecoder(CompletionRequest, refused=COMPLETION_REFUSED)

    async def __call__(self, exchange: Exchange) -> None:
        body = await read_json_body(exchange, self._parts.settings)
        request = self._decoder.decode(body)
        await exchange.attend(self._answer(exchange, request, num_bytes=len(body)))

    async def _answer(
        self, exchange: Exchange, request: CompletionRequest, *, num_bytes: int
    ) -> None:
        settings = self._parts.settings
        deployment = self._parts.deployments.generator(request.model)
        exchange.model = deployment.deployment_name
        _check(request, max_n=settings.max_n)
        inputs = split_inputs(request.prompt, param="prompt", max_inputs=settings.max_batch_inputs)
        prompts = await offload(num_bytes, _tokenize, deployment, inputs)
        generation = _generation(request, deployment, prompts)
        echoes = _echoes(request, deployment, inputs, n=generation.options.n)
        meter = Meter(
            generation,
            self._parts.metrics.model(deployment.deployment_name),
            started_at=exchange.started_at,
        )
        if request.stream:
            options = request.stream_options
            shape = CompletionEvents(
                deployment.name,
                echoes=echoes,
                num_logprobs=request.logprobs,
                include_usage=bool(options and options.include_usage),
            )
            await stream(exchange, generation, shape, meter)
            return
        answers = await gather(generation, meter)
        await exchange.answer(
            completion(
                deployment.name,
                answers,
                meter.usage,
                echoes=echoes,
                num_logprobs=request.logprobs,
            ),
            headers=generation.headers,
        )


def _check(request: CompletionRequest, *, max_n: int) -> None:
    check_generation(request, max_n=max_n)
    if request.echo and request.logprobs is not None:
        raise InvalidRequest(
            "echo: cannot be combined with `logprobs`, the prompt's tokens are not scored",
            param="echo",
        )


def _tokenize(deployment: GenerateDeployment, inputs: list[str | list[int]]) -> list[list[int]]:
    return [deployment.tokenize(item) if isinstance(item, str) else item for item in inputs]


def _generation(
    request: CompletionRequest, deployment: GenerateDeployment, prompts: list[list[int]]
) -> Generation:
    max_tokens = token_budget(
        deployment,
        longest_prompt=max(map(len, prompts)),
        asked=request.max_tokens,
        default=DEFAULT_MAX_TOKENS,
        prompt_param="prompt",
    )
    choice = choose_precision(request, deployment, prompts, max_tokens=max_tokens)
    options = generate_options(
        request,
        max_tokens=max_tokens,
        precision=None if choice is None else choice.precision,
        num_logprobs=request.logprobs,
        defaults=deployment.sampling_defaults,
    )
    return Generation(deployment=deployment, prompts=prompts, options=options, precision=choice)


def _echoes(
    request: CompletionRequest,
    deployment: GenerateDeployment,
    inputs: list[str | list[int]],
    *,
    n: int,
) -> list[str]:
    """Return the text shown before each answer."""
    if not request.echo:
        return [""] * (len(inputs) * n)
    texts = [item if isinstance(item, str) else deployment.detokenize(item) for item in inputs]
    return [text for text in texts for _ in range(n)]
