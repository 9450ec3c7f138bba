"""Bodies of the routes under `/admin`."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct


class DeploymentBody(
    Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, omit_defaults=True
):
    """A deployment file as JSON; docs/deployment-file.md has its keys."""

    models: Annotated[dict[str, Any], Meta(description="The file's section `models`.")]
    pools: Annotated[dict[str, Any], Meta(description="The file's section `pools`.")] = {}
    gateway: Annotated[dict[str, Any], Meta(description="The file's section `gateway`.")] = {}


class AppliedSetting(Struct, frozen=True, kw_only=True):
    """One setting that has changed."""

    model: str
    setting: str
    """Its path below the model: `qos.reserved_share`."""
    before: Any
    after: Any


class AppliedChanges(Struct, frozen=True, kw_only=True):
    """What has changed; empty where the file says what is served already."""

    object: Literal["list"] = "list"
    data: list[AppliedSetting]


class DecisionBody(Struct, frozen=True, kw_only=True):
    """One decision of a batching policy."""

    at: float
    """Unix time."""
    age_s: float
    """How long ago that was, by the server's clock."""
    model: str
    scale: str
    """The loop that decided: `medium` or `slow`."""
    action: str
    """Stable word."""
    reason: str
    """One sentence for a person."""
    signals: dict[str, Any]
    """The signals that decided, by name."""


class DecisionList(Struct, frozen=True, kw_only=True):
    """The decisions about a model that are kept, oldest first."""

    object: Literal["list"] = "list"
    model: str
    data: list[DecisionBody]
