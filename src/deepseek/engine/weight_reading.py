"""How a model's weights are read, from what the worker was told: the check, and the key."""

from deepseek.core.errors import ConfigurationError
from deepseek.core.wire import ModelSpec
from deepseek.weights.model_directory import ModelDirectory
from deepseek.weights.store.keys.registry import make_key_source
from deepseek.weights.store.reader import Reading, Verify


def reading_of(model: ModelSpec, directory: ModelDirectory) -> Reading:
    """Return how a model's chunks are checked and opened; no key is asked for yet.

    Raises `ConfigurationError` where a model that has a key is not sealed: whoever gives a key
    relies on it that nobody without the key can exchange the weights.
    """
    verify = Verify(model.verify)
    if model.key is None:
        return Reading(verify=verify)
    if directory.manifest is None or directory.manifest.sealing is None:
        raise ConfigurationError(
            f"models.{model.name}.key: the weights in {directory.path} are not sealed; leave `key` "
            "out, or add them again with deepseek models add --chunks --seal-with",
            param="key",
        )
    return Reading(verify=verify, keys=make_key_source(model.key.source, model.key.argument))
