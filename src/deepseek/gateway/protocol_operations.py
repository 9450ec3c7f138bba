"""Bodies of the routes that describe the platform."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from deepseek.gateway.protocol_base import ModelName, Refusal

AdapterName = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9][A-Za-z0-9._:/-]{0,95}$(?!\n)",  # `$` alone lets a newline pass
        description="What requests call the adapter: letters, digits and . _ - : /, beginning with "
        "a letter or digit.",
    ),
]
AdapterPath = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4096,
        description="Directory that PEFT saved, on the server, below one of the deployment's "
        "`adapter_dirs`; relative to one of these, or absolute.",
    ),
]
DROP_REFUSED = {"lora_int_id": Refusal(remedy="adapters have names only; send `lora_name`")}


class Model(Struct, frozen=True, kw_only=True):
    """One deployment, in the OpenAI API's shape and a little more."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "deepseek"
    task: str
    max_model_len: int
    ready: bool
    parent: str | None = None
    """Of a LoRA adapter: the deployment that serves it."""
    residency: str | None = None
    """Where the model is: `disk` (a request loads it), `loading`, `ready` or `failed`; none while
    its pool has no worker.
    """


class ModelList(Struct, frozen=True, kw_only=True):
    """All deployments and their adapters."""

    object: Literal["list"] = "list"
    data: list[Model]


class Liveness(Struct, frozen=True):
    """The process answers."""

    status: Literal["live"] = "live"


class ModelReadiness(Struct, frozen=True, kw_only=True):
    """Whether one deployment takes requests, and why not."""

    name: str
    task: str
    ready: bool
    reason: str
    residency: str | None = None
    """Where the model is; one on `disk` takes requests as well."""


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether every deployment takes requests."""

    status: Literal["ready", "not_ready", "draining"]
    models: list[ModelReadiness]


class Index(Struct, frozen=True, kw_only=True):
    """What is here."""

    name: str
    version: str
    routes: dict[str, str]


class LoadAdapterRequest(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which adapter to serve, and under what name."""

    lora_name: AdapterName
    lora_path: AdapterPath
    load_inplace: bool | None = None
    """Replace an adapter of this name; requests that run with it go on unchanged."""
    model: Annotated[
        ModelName, Meta(description="Extension. The deployment to adapt, where several could be.")
    ] | None = None  # fmt: skip


class DropAdapterRequest(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which adapter to serve no longer."""

    lora_name: AdapterName


class DroppedAdapter(Struct, frozen=True, kw_only=True):
    """An adapter that takes no more requests, in the shape of OpenAI's deleted models."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
