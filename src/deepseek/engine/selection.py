"""Which engine runs a model. Each is imported on use: an environment need hold one of them only."""

import logging
import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deepseek.core.errors import ConfigurationError, DeepseekError, UnsupportedModel
from deepseek.core.requests import Task
from deepseek.core.residency import Residency
from deepseek.core.wire import ModelInfo, ModelSpec, WorkerSpec
from deepseek.engine.base import Engine
from deepseek.weights.model_directory import (
    DECODER_ARCHITECTURES,
    ModelDirectory,
    open_model_directory,
)

if TYPE_CHECKING:
    from deepseek.engine.load_pace import LoadPace

logger = logging.getLogger(__name__)

_VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its steps run in ours
    "VLLM_CONFIGURE_LOGGING": "0",  # our log, our format
    "VLLM_NO_USAGE_STATS": "1",  # tells nobody that it runs
}


def load_model(
    model: ModelSpec, spec: WorkerSpec, *, device: str, pace: "LoadPace | None" = None
) -> tuple[Engine, ModelInfo]:
    """Load one model into the engine that the deployment chose, or that fits.

    Raises errors of `core.errors` and `OSError`. `pace`: of a load beside others' steps, in another
    thread than theirs; raises `LoadCancelled` too then.
    """
    directory = open_model_directory(Path(model.path), any_decoder=model.engine != "torch")
    if choose_engine(model, directory, pool=spec.pool) == "vllm":
        if model.key is not None:
            raise ConfigurationError(
                f"models.{model.name}.key: vLLM cannot open sealed weights; leave it out, or write "
                "`engine: torch`"
            )
        if pace is not None:
            raise ConfigurationError(
                f"models.{model.name}: vLLM cannot load a model beside steps of others; leave out "
                "min_resident, or write `engine: torch`"
            )
        return _load_in_vllm(model, spec, directory, device=device)
    return _load_in_torch(model, spec, directory, device=device, pace=pace)


def import_torch_engine() -> None:
    """Import ahead what loading a model would; an environment for another engine may lack it."""
    with suppress(ImportError):
        import deepseek.engine.loading  # noqa: F401, PLC0415 - see the module


def failed_info(model: ModelSpec, error: DeepseekError | OSError) -> ModelInfo:
    """Return the report of a model that could not be loaded."""
    code = error.code if isinstance(error, DeepseekError) else "model_unavailable"
    return ModelInfo(
        name=model.name,
        max_model_len=0,
        vocab_size=0,
        error=str(error),
        error_code=code,
        residency=Residency.FAILED,
    )


def absent_info(model: ModelSpec) -> ModelInfo:
    """Return the report of a model that has not been loaded yet, and may be."""
    return ModelInfo(name=model.name, max_model_len=0, vocab_size=0, residency=Residency.DISK)


def choose_engine(
    model: ModelSpec, directory: ModelDirectory, *, pool: str
) -> Literal["torch", "vllm"]:
    """Return the engine of a model: what was asked, else ours where it can, else vLLM.

    Raises `UnsupportedModel` where neither can.
    """
    if model.engine != "auto":
        return model.engine
    if directory.task is not Task.GENERATE or directory.architecture in DECODER_ARCHITECTURES:
        return "torch"
    if find_spec("vllm") is not None:
        return "vllm"
    raise UnsupportedModel(
        f"{directory.path}: architecture {directory.architecture!r} is none of the torch engine's "
        f"({', '.join(DECODER_ARCHITECTURES)}), and {sys.executable} has no vllm to run it: "
        f"{_remedy(pool)}"
    )


def _load_in_torch(
    model: ModelSpec,
    spec: WorkerSpec,
    directory: ModelDirectory,
    *,
    device: str,
    pace: "LoadPace | None",
) -> tuple[Engine, ModelInfo]:
    try:
        from deepseek.engine.loading import load_engine  # noqa: PLC0415 - see the module
    except ImportError as error:
        raise ConfigurationError(
            f"models.{model.name}: {sys.executable} cannot run the torch engine ({error}): install "
            f"what the extra `engine` of deepseek-platform names there, write `engine: vllm`, or "
            "give the model a pool without `python`"
        ) from error
    logger.info("model %s runs on the torch engine", model.name)
    return load_engine(model, spec, device=device, directory=directory, pace=pace)


def _load_in_vllm(
    model: ModelSpec, spec: WorkerSpec, directory: ModelDirectory, *, device: str
) -> tuple[Engine, ModelInfo]:
    # vLLM reads these when it is imported. Its CPU build does not always know that it is one.
    os.environ.update(_VLLM_ENVIRONMENT, VLLM_TARGET_DEVICE=device.partition(":")[0])
    if not logger.isEnabledFor(logging.DEBUG):  # it tells pages at every start
        logging.getLogger("vllm").setLevel(logging.WARNING)
    try:
        from deepseek.engine.engines.vllm import load_vllm_engine  # noqa: PLC0415 - as above
    except Exception as error:  # a mismatched library beside it raises what it likes
        logger.debug("vLLM cannot be imported", exc_info=True)
        raise ConfigurationError(
            f"models.{model.name}.engine: {sys.executable} has no vllm that can be used "
            f"({error}): {_remedy(spec.pool)}"
        ) from error
    logger.info("model %s runs on vLLM", model.name)
    return load_vllm_engine(model, spec, directory, device=device)


def _remedy(pool: str) -> str:
    return (
        f"name the Python of an environment that has it in pools.{pool}.python, or install it "
        "there (docs/vllm.md)"
    )
