"""Every error the platform raises on purpose, as one tree.

    DeepseekError                      code                      HTTP
    ├── InvalidRequest                 invalid_request           400   the caller must change it
    │   ├── UnsupportedParameter       unsupported_parameter     400
    │   ├── ContextLengthExceeded      context_length_exceeded   400
    │   ├── InvalidGrammar             invalid_grammar           400
    │   ├── ModelNotFound              model_not_found           404
    │   ├── AdapterNotFound            adapter_not_found         404
    │   ├── AdapterRejected            adapter_rejected          400
    │   ├── AdapterLoadingOff          adapter_loading_off       403
    │   ├── WrongTask                  wrong_task                400
    │   └── BodyTooLarge               body_too_large            413
    ├── RetryLater                     retry_later               503   with Retry-After
    │   ├── Overloaded                 overloaded                429
    │   └── Unavailable                unavailable               503
    │       ├── DeadlineUnreachable    deadline_unreachable      503
    │       ├── WorkerCrashed          worker_crashed            503
    │       ├── ModelUnavailable       model_unavailable         503
    │       ├── ModelLoading           model_loading             503
    │       └── Draining               draining                  503
    ├── RequestTimeout                 request_timeout           504
    ├── EngineFault                    engine_fault              500
    └── ConfigurationError             configuration_error        -    the operator must change it
        ├── DeploymentFileError        deployment_file_error      -
        ├── ModelSourceError           model_source_error         -
        ├── UnsupportedModel           unsupported_model          -
        ├── CorruptWeights             corrupt_weights            -
        ├── StorageFull                storage_full               -
        ├── DownloadFailed             download_failed            -
        ├── InvalidQuantization        invalid_quantization       -
        ├── QuantizationRefused        quantization_refused       -
        └── AddressInUse               address_in_use             -

`code` is the stable name on the wire; the gateway maps the tree to HTTP in one handler, the command
line prints `message` and exits with 2. A message names the field and the remedy.
"""

from typing import Any, ClassVar


class DeepseekError(Exception):
    """Base of the tree; `param` names the request or settings field at fault, if there is one."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(DeepseekError):
    """The request cannot be served as it is; sending it again will not help."""

    code = "invalid_request"


class UnsupportedParameter(InvalidRequest):
    """A parameter that exists in the API but not in this deployment."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and answer do not fit into the model's context or the device's KV cache."""

    code = "context_length_exceeded"


class InvalidGrammar(InvalidRequest):
    """A JSON schema or tool definition that no constrained decoder can follow."""

    code = "invalid_grammar"


class ModelNotFound(InvalidRequest):
    """No deployment of this name."""

    code = "model_not_found"


class AdapterNotFound(InvalidRequest):
    """No LoRA adapter of this name is loaded."""

    code = "adapter_not_found"


class AdapterRejected(InvalidRequest):
    """A LoRA adapter that cannot be read, does not fit its model, or finds no room."""

    code = "adapter_rejected"


class AdapterLoadingOff(InvalidRequest):
    """The deployment takes no adapters over HTTP."""

    code = "adapter_loading_off"


class WrongTask(InvalidRequest):
    """The deployment exists but does not do this (an embedder asked to chat)."""

    code = "wrong_task"


class BodyTooLarge(InvalidRequest):
    """The HTTP body exceeds `gateway.max_body_bytes`."""

    code = "body_too_large"


class RetryLater(DeepseekError):
    """Nothing is wrong with the request; `retry_after_s` says when to send it again."""

    code = "retry_later"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class Overloaded(RetryLater):
    """The deployment's queue is full."""

    code = "overloaded"


class Unavailable(RetryLater):
    """The deployment cannot answer now."""

    code = "unavailable"


class DeadlineUnreachable(Unavailable):
    """The request could not have been answered by its model's deadline, so it was not begun."""

    code = "deadline_unreachable"


class WorkerCrashed(Unavailable):
    """The worker process died while it held the request, and a retry was not possible."""

    code = "worker_crashed"


class ModelUnavailable(Unavailable):
    """The worker runs but could not load this model."""

    code = "model_unavailable"


class ModelLoading(Unavailable):
    """The model is being loaded, which takes longer than the request's deadline leaves."""

    code = "model_loading"


class Draining(Unavailable):
    """The platform is shutting down and takes no new requests."""

    code = "draining"


class RequestTimeout(DeepseekError):
    """The request ran longer than the deployment's `request_timeout_s`."""

    code = "request_timeout"


class EngineFault(DeepseekError):
    """An engine step failed; the requests in that step are lost, the worker goes on."""

    code = "engine_fault"


class ConfigurationError(DeepseekError):
    """The operator's input is wrong: file, model directory, address."""

    code = "configuration_error"


class DeploymentFileError(ConfigurationError):
    """The YAML file is not valid; the message carries one line per fault."""

    code = "deployment_file_error"


class ModelSourceError(ConfigurationError):
    """`source` names neither a catalogue entry nor a usable model directory."""

    code = "model_source_error"


class UnsupportedModel(ConfigurationError):
    """The model's architecture is not one the engine knows."""

    code = "unsupported_model"


class CorruptWeights(ConfigurationError):
    """A weights file is damaged, or contradicts the model's config."""

    code = "corrupt_weights"


class StorageFull(ConfigurationError):
    """The model cache's file system has no room."""

    code = "storage_full"


class DownloadFailed(ConfigurationError):
    """A catalogue model's package could not be fetched, or its digest differs."""

    code = "download_failed"


class InvalidQuantization(ConfigurationError):
    """Precisions that this model, or calibration data that this measure, cannot be used with."""

    code = "invalid_quantization"


class QuantizationRefused(ConfigurationError):
    """No allowed precision keeps the accuracy asked for; `report` says what was tried."""

    code = "quantization_refused"

    def __init__(self, message: str, *, param: str | None = None, report: Any = None) -> None:
        super().__init__(message, param=param)
        self.report = report


class AddressInUse(ConfigurationError):
    """Another process listens on the gateway's address."""

    code = "address_in_use"


def error_classes() -> dict[str, type[DeepseekError]]:
    """Return every error class by its wire code."""
    found: dict[str, type[DeepseekError]] = {}
    pending: list[type[DeepseekError]] = [DeepseekError]
    while pending:
        cls = pending.pop()
        found[cls.code] = cls
        pending.extend(cls.__subclasses__())
    return found


def error_from_wire(
    code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
) -> DeepseekError:
    """Rebuild an error that a worker sent; an unknown code becomes an `EngineFault`."""
    cls = error_classes().get(code, EngineFault)
    if retry_after_s is not None and issubclass(cls, RetryLater):
        return cls(message, param=param, retry_after_s=retry_after_s)
    return cls(message, param=param)
