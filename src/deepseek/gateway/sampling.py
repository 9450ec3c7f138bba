"""From request fields to `GenerateOptions`: defaults, limits, and how many tokens are left."""

from deepseek.core.errors import ContextLengthExceeded, InvalidRequest
from deepseek.core.precision import Precision
from deepseek.core.requests import SamplingParams
from deepseek.gateway.protocol_base import GenerationFields
from deepseek.serving.base import GenerateDeployment, GenerateOptions, SamplingDefaults


def check_generation(request: GenerationFields, *, max_n: int) -> None:
    """Raise `InvalidRequest` for fields that contradict one another or exceed `max_n`."""
    if request.n is not None and request.n > max_n:
        raise InvalidRequest(f"n: at most {max_n} answers (gateway.max_n)", param="n")
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "stream_options: needs `stream: true`; leave it out otherwise", param="stream_options"
        )


def token_budget(
    deployment: GenerateDeployment,
    *,
    longest_prompt: int,
    asked: int | None,
    default: int | None,
    prompt_param: str,
    budget_param: str = "max_tokens",
) -> int:
    """Return `max_tokens`: what was asked, else `default`, else what is left of the context.

    Raises `ContextLengthExceeded` where the prompt, or prompt and answer, do not fit.
    """
    limit = deployment.max_model_len
    left = limit - longest_prompt
    if left < 1:
        raise ContextLengthExceeded(
            f"{prompt_param}: {longest_prompt} tokens, but the context of model "
            f"{deployment.name!r} is {limit} with the answer; shorten it",
            param=prompt_param,
        )
    if asked is None:
        return left if default is None else min(default, left)
    if asked > left:
        raise ContextLengthExceeded(
            f"{budget_param}: the context of model {deployment.name!r} is {limit} tokens; the "
            f"prompt has {longest_prompt} and {budget_param} asks for {asked} more: at most {left}",
            param=budget_param,
        )
    return asked


def generate_options(
    request: GenerationFields,
    *,
    max_tokens: int,
    num_logprobs: int | None,
    defaults: SamplingDefaults,
    grammar: str | None = None,
    precision: Precision | None = None,
) -> GenerateOptions:
    """Return how to answer; raises `InvalidRequest` for a `min_tokens` above `max_tokens`."""
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens: {min_tokens} is more than the {max_tokens} tokens the answer may have",
            param="min_tokens",
        )
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=_or(request.temperature, defaults.temperature),
        top_p=_or(request.top_p, defaults.top_p),
        top_k=max(int(_or(request.top_k, defaults.top_k)), 0),
        min_p=_or(request.min_p, defaults.min_p),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
        logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
        seed=request.seed,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=min_tokens,
        num_logprobs=num_logprobs,
        grammar=grammar,
    )
    return GenerateOptions(
        sampling=sampling,
        precision=precision,
        n=request.n or 1,
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        include_stop=bool(request.include_stop_str_in_output),
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
