"""The deployment file: one YAML that says what is served, on which devices, and to whom.

It composes the settings classes of the rooms; each room receives its own part only. Every fault of
a file is reported at once, as `FILE:LINE: key: what is wrong; remedy`.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from deepseek.core.errors import DeploymentFileError
from deepseek.core.settings import Settings
from deepseek.core.settings_faults import iter_settings, plain_faults
from deepseek.core.spellings import spelling_of
from deepseek.core.yaml_document import Fault, KeyPath, YamlDocument, read_yaml
from deepseek.engine.settings import PoolSettings
from deepseek.gateway.settings import GatewaySettings
from deepseek.scheduling.sharing.registry import step_policy_names
from deepseek.serving.key_faults import key_faults
from deepseek.serving.precision_faults import precision_faults
from deepseek.serving.qos_faults import qos_faults
from deepseek.serving.residency_faults import preloading_faults, residency_faults
from deepseek.serving.settings import ModelName, ModelSettings

PoolName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
        description="letters, digits and . _ -, beginning with a letter or digit, at most 96",
    ),
]

DEFAULT_POOL = "default"


class DeploymentFile(Settings):
    """Models under the names that clients use, the device pools they run on, and the HTTP edge."""

    models: dict[ModelName, ModelSettings] = Field(min_length=1)
    """The served models: the name clients send as `model`, and what answers to it. At least one."""
    pools: dict[PoolName, PoolSettings] = Field(default_factory=dict)
    """Devices and how they are used; the pool `default` exists also when it is not declared."""
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    """Where the HTTP edge listens and what it refuses."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        faults = _cross_faults(self.model_dump(include={"models", "pools"}))
        if faults:
            raise ValueError("; ".join(f"{'.'.join(map(str, p))}: {text}" for p, text in faults))
        return self

    def pool_settings(self) -> dict[str, PoolSettings]:
        """Return the pools that at least one model names, the implicit `default` among them."""
        used = dict.fromkeys(model.pool for model in self.models.values())
        return {name: self.pools.get(name) or PoolSettings() for name in used}


def quickstart_path() -> Path:
    """Return the deployment file inside the package, served when no other is named."""
    return Path(__file__).with_name("quickstart.yaml")


def load_deployment_file(path: Path) -> DeploymentFile:
    """Return the validated file; raises `DeploymentFileError` with one line per fault."""
    text = _read_text(path)
    document = read_yaml(text)
    faults = list(document.faults)
    deployment_file: DeploymentFile | None = None
    if isinstance(document.data, dict):
        deployment_file, more = _validate(document)
        faults += more
    elif not faults:
        found = "is empty" if document.data is None else "does not begin with a key"
        faults.append(
            Fault(
                line=1, path=(), message=f"the file {found}; write `models:` and a model under it"
            )
        )
    if faults or deployment_file is None:
        # Two findings on one key say one thing twice: the reader's comes first and is nearer.
        unique = {(fault.line, fault.path): fault for fault in reversed(faults)}
        ordered = sorted(unique.values(), key=lambda fault: fault.line)
        raise DeploymentFileError("\n".join(f"{path}:{fault.line}: {fault}" for fault in ordered))
    return deployment_file


def parse_deployment(data: Any) -> DeploymentFile:
    """Return the file that came as data; raises `DeploymentFileError` with one line per fault."""
    try:
        return DeploymentFile.model_validate(data, strict=True)
    except ValidationError as error:
        found = _cross_faults(data) + [f for f in plain_faults(error, DeploymentFile) if f[0]]
        lines = dict.fromkeys(f"{'.'.join(map(str, place))}: {text}" for place, text in found)
        # A fault without a place says that the data is no mapping at all.
        text = "\n".join(lines) or "must be a mapping with `models` and a model under it"
        raise DeploymentFileError(text) from None


def deployment_file_schema() -> dict[str, Any]:
    """Return the file's JSON Schema (draft 2020-12), for editors."""
    schema = DeploymentFile.model_json_schema(by_alias=False)
    for section in _objects(schema):
        section.setdefault("additionalProperties", False)
        for part in (section, *section.get("properties", {}).values()):
            if "description" in part:
                part["description"] = " ".join(part["description"].split())
    for setting in iter_settings(DeploymentFile):
        _add_bounds(schema, setting.path[-1], setting.field.metadata)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Deployment file",
        "description": f"{schema['description']} Keys are shown in snake_case; `deepseek` reads "
        "their camelCase spelling (`maxModelLen`) as well.",
    }


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DeploymentFileError(f"{path}: no such file; name one with -f FILE") from None
    except IsADirectoryError:
        raise DeploymentFileError(
            f"{path}: is a directory; name the deployment file in it"
        ) from None
    except OSError as error:
        raise DeploymentFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DeploymentFileError(
            f"{path}:{line}: is not UTF-8 text; save the file in that encoding"
        ) from None


def _validate(document: YamlDocument) -> tuple[DeploymentFile | None, list[Fault]]:
    found: list[tuple[KeyPath, str]] = _cross_faults(document.data)
    deployment_file = None
    try:
        # Strict: `port: "8000"` and `port: yes` are mistakes, not numbers.
        deployment_file = DeploymentFile.model_validate(document.data, strict=True)
    except ValidationError as error:
        # The fault without a place is the cross-check below, which has been made already.
        found += [fault for fault in plain_faults(error, DeploymentFile) if fault[0]]
    faults = [
        Fault(line=document.line_of(place), path=place, message=text) for place, text in found
    ]
    return deployment_file, faults


def _cross_faults(data: Any) -> list[tuple[KeyPath, str]]:
    """Return what no single field can see; `data` may be anything that YAML can hold."""
    models, pools = _sections(data, "models"), _sections(data, "pools")
    pool_names = list(dict.fromkeys([DEFAULT_POOL, *(_mapping(data, "pools"))]))
    found: list[tuple[KeyPath, str]] = []
    for name, model in models.items():
        pool = model.get("pool", DEFAULT_POOL)
        if isinstance(pool, str) and pool not in pool_names:
            remedy = _one_of(pool, pool_names, otherwise="declare it under `pools`, or use one of")
            found.append((("models", name, "pool"), f"no pool {pool!r}; {remedy}"))
        found += [(("models", name, key), text) for key, text in _length_faults(model)]
        found += [(("models", name, *place), text) for place, text in _adapter_faults(name, models)]
    found += [(("models", *place), text) for place, text in qos_faults(models, pools)]
    found += [(("models", *place), text) for place, text in residency_faults(models)]
    found += [(("models", *place), text) for place, text in key_faults(models)]
    found += [(("models", *place), text) for place, text in precision_faults(models, pools)]
    found += [(("pools", *place), text) for place, text in preloading_faults(pools)]
    for name, settings in pools.items():
        key = spelling_of(settings, "step_policy")
        policy = settings.get(key)
        if isinstance(policy, str) and policy not in (known := step_policy_names()):
            remedy = _one_of(policy, known, otherwise="known")
            found.append((("pools", name, key), f"no step policy {policy!r}; {remedy}"))
    found += [(("pools", *place), text) for place, text in _record_faults(pools)]
    return found


def _mapping(data: Any, key: str) -> Mapping[str, Any]:
    value = data.get(key) if isinstance(data, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _sections(data: Any, key: str) -> dict[str, Mapping[str, Any]]:
    items = _mapping(data, key).items()
    return {name: value for name, value in items if isinstance(value, Mapping)}


def _one_of(name: str, known: list[str], *, otherwise: str) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise}: {', '.join(known)}"


def _length_faults(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    limit = model.get("max_model_len", model.get("maxModelLen"))
    key = "default_max_tokens" if "default_max_tokens" in model else "defaultMaxTokens"
    tokens = model.get(key)
    if isinstance(limit, int) and isinstance(tokens, int) and tokens >= limit:
        return [(key, f"must be less than max_model_len ({limit}), to leave room for a prompt")]
    return []


def _adapter_faults(
    model: str, models: Mapping[str, Mapping[str, Any]]
) -> list[tuple[KeyPath, str]]:
    """Names are of one adapter or model each, and there are no more than may be loaded."""
    own = _mapping(models[model], "adapters")
    others = {
        adapter: name
        for name, settings in models.items()
        if name != model
        for adapter in _mapping(settings, "adapters")
    }
    found: list[tuple[KeyPath, str]] = []
    for name in own:
        taken = "a model" if name in models else f"an adapter of {others.get(name)!r}"
        if name in models or name in others:
            found.append((("adapters", name), f"{taken} has this name; give it another"))
    limit = models[model].get("max_adapters", models[model].get("maxAdapters"))
    if limit is None:
        limit = ModelSettings.model_fields["max_adapters"].default
    if isinstance(limit, int) and len(own) > limit:
        found.append((("adapters",), f"lists {len(own)}; max_adapters is {limit}: raise it"))
    return found


def _record_faults(pools: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[KeyPath, str]]:
    """Each worker begins its records anew: two of them would lose each other's."""
    taken: dict[str, str] = {}
    for name, pool in pools.items():
        for key in ("step_record", "stepRecord", "decision_record", "decisionRecord"):
            path = pool.get(key)
            if not isinstance(path, str):
                continue
            if path in taken:
                yield (name, key), f"is the {taken[path]} too; give each a file of its own"
            taken[path] = f"{key} of {name!r}"


def _objects(schema: dict[str, Any]) -> list[dict[str, Any]]:
    sections = [schema, *schema.get("$defs", {}).values()]
    return sections + [
        value
        for section in sections
        for value in section.get("properties", {}).values()
        if "patternProperties" in value
    ]


def _add_bounds(schema: dict[str, Any], name: str, metadata: list[Any]) -> None:
    """Give the number spelling of a size or duration the bounds that pydantic leaves out."""
    keywords = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum"}
    for section in _objects(schema):
        for choice in section.get("properties", {}).get(name, {}).get("anyOf", ()):
            if choice.get("type") in ("integer", "number"):
                choice.update(
                    (word, getattr(bound, key))
                    for bound in metadata
                    for key, word in keywords.items()
                    if hasattr(bound, key)
                )
