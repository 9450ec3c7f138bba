"""A check for `schemathesis run` (test_openapi.py), which loads this module by its name."""

from typing import Any

import schemathesis

CROSS_FIELD = {
    # fields whose validity depends on the prompt, on another field, or on the model
    *("messages", "prompt", "max_tokens", "max_completion_tokens", "min_tokens", "top_logprobs"),
    *("stream_options", "echo", "tools", "tool_choice", "response_format", "dimensions"),
    *("precision", "service_tier"),  # what the model has
    *("lora_name", "lora_path"),  # what is loaded, what is on the disk
    "models",  # of a deployment file: those that are served
}


@schemathesis.check
def valid_bodies_are_refused_for_cross_field_rules_only(
    context: schemathesis.CheckContext,
    response: schemathesis.Response,
    case: "schemathesis.Case[Any]",
) -> None:
    """What the document allows is accepted, but for rules that JSON Schema cannot say."""
    meta = case.meta
    if response.status_code != 400 or meta is None or not meta.generation.mode.is_positive:
        return
    error = response.json()["error"]
    root = (error["param"] or "").partition(".")[0].partition("[")[0]
    if error["message"].endswith("got `float`"):
        return  # to JSON Schema 5.0 is an integer, to this API it is not
    if root not in CROSS_FIELD:
        raise AssertionError(f"a valid body was refused: {error}")
