"""What is wrong with the setting that says where the key of sealed weights is."""

from collections.abc import Iterator, Mapping
from typing import Any

from deepseek.core.errors import ConfigurationError
from deepseek.weights.store.keys.registry import key_source_names, make_key_source

Found = tuple[tuple[str, ...], str]
"""The keys below a section that lead to a fault, and what it is."""


def key_faults(models: Mapping[str, Mapping[str, Any]]) -> Iterator[Found]:
    """Yield the faults of the models of a file, whose values may be anything that YAML can hold.

    No message repeats a value: somebody may have written the key itself.
    """
    known = key_source_names()
    for name, model in models.items():
        key = model.get("key")
        if key is None:
            continue
        if not isinstance(key, Mapping) or len(key) != 1 or not isinstance(next(iter(key)), str):
            text = f"needs one line that says where the key is, never the key: {', '.join(known)}"
            yield (name, "key"), text
            continue
        ((source, argument),) = key.items()
        if source not in known:
            text = f"is no place for a key; known: {', '.join(known)}"
            yield (name, "key", source), text
            continue
        try:
            make_key_source(source, argument)
        except ConfigurationError as error:
            yield (name, "key", source), error.message
        if model.get("engine") == "vllm":
            yield (name, "key"), "vLLM cannot open sealed weights; write `engine: torch`"
