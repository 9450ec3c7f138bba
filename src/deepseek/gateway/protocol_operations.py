"""Bodies of the routes that describe the platform."""

from typing import Literal

from msgspec import Struct


class Model(Struct, frozen=True, kw_only=True):
    """One deployment, in the OpenAI API's shape and a little more."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "deepseek"
    task: str
    max_model_len: int
    ready: bool


class ModelList(Struct, frozen=True, kw_only=True):
    """All deployments."""

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


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether every deployment takes requests."""

    status: Literal["ready", "not_ready", "draining"]
    models: list[ModelReadiness]


class Index(Struct, frozen=True, kw_only=True):
    """What is here."""

    name: str
    version: str
    routes: dict[str, str]
