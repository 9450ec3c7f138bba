"""What every engine refuses, in the same words."""

from collections.abc import Sequence

from deepseek.core.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from deepseek.core.precision import Precision
from deepseek.core.requests import GenerateRequest


def check_generation(
    request: GenerateRequest,
    *,
    max_model_len: int,
    vocab_size: int,
    precisions: Sequence[Precision] = (),
) -> None:
    """Raise `InvalidRequest` for a generation that a model of these limits can never serve.

    `precisions`: what a request may choose from; empty where there is no choice.
    """
    prompt, params = request.prompt_token_ids, request.sampling
    if not prompt:
        raise InvalidRequest("the prompt has no tokens", param="prompt")
    if params.max_tokens < 1:
        raise InvalidRequest("max_tokens must be at least 1", param="max_tokens")
    if len(prompt) + params.max_tokens > max_model_len:
        raise ContextLengthExceeded(
            f"{len(prompt)} prompt tokens and {params.max_tokens} new ones exceed the model's "
            f"{max_model_len}",
            param="max_tokens",
        )
    named = {
        "prompt": prompt,
        "logit_bias": params.logit_bias,
        "stop_token_ids": params.stop_token_ids,
    }
    for param, token_ids in named.items():
        unknown = next((token for token in token_ids if not 0 <= token < vocab_size), None)
        if unknown is not None:
            raise InvalidRequest(
                f"{param}: token id {unknown} is not in the vocabulary, 0 to {vocab_size - 1}",
                param=param,
            )
    if request.precision is not None and request.precision not in precisions:
        known = f"has {' and '.join(precisions)}" if precisions else "leaves no choice of it"
        raise UnsupportedParameter(
            f"precision: {str(request.precision)!r} cannot be had; model {request.model!r} {known}",
            param="precision",
        )
