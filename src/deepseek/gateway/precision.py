"""From a request's fields to the precision it is computed in, and the header that tells it."""

from collections.abc import Sequence

from deepseek.core.precision import Precision
from deepseek.gateway.protocol_base import GenerationFields
from deepseek.scheduling.precision.policy import PrecisionChoice, RequestKind
from deepseek.serving.base import GenerateDeployment

HEADER = b"x-deepseek-precision"


def choose_precision(
    request: GenerationFields,
    deployment: GenerateDeployment,
    prompts: Sequence[list[int]],
    *,
    max_tokens: int,
) -> PrecisionChoice | None:
    """Return what to compute in; None where the model has one precision.

    Raises `UnsupportedParameter` for a precision or a service tier that the model does not have.
    """
    kind = RequestKind(
        num_prompt_tokens=max(map(len, prompts)),
        max_answer_tokens=max_tokens,
        service_tier=request.service_tier,
    )
    named = None if request.precision is None else Precision(request.precision)
    return deployment.choose_precision(kind, named=named)


def precision_headers(choice: PrecisionChoice | None) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer."""
    return [] if choice is None else [(HEADER, choice.precision.encode())]
