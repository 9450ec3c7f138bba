"""The deployment file: every fault at once, in plain words, with line and remedy."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deepseek.core.errors import DeploymentFileError
from deepseek.core.qos import LateRequests, Priority, QoS
from deepseek.core.settings_faults import iter_settings
from deepseek.deployment_file import (
    DeploymentFile,
    deployment_file_schema,
    load_deployment_file,
    parse_deployment,
    quickstart_path,
)

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


def faults(tmp_path: Path, text: str | bytes) -> list[str]:
    """Return the lines of the error that a text causes, without the file's name."""
    path = tmp_path / "f.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DeploymentFileError) as caught:
        load_deployment_file(path)
    return [line.removeprefix(f"{path}:") for line in caught.value.message.splitlines()]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    assert load_deployment_file(path).models


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_schema_accepts_every_example(path: Path) -> None:
    jsonschema_rs.validate(deployment_file_schema(), yaml.safe_load(path.read_text()))


def test_the_packaged_quickstart_is_the_example() -> None:
    assert quickstart_path().read_bytes() == (REPOSITORY / "examples/quickstart.yaml").read_bytes()
    assert set(load_deployment_file(quickstart_path()).models) == {
        "smollm2-135m",
        "minilm-l6",
        "sentiment",
    }


def test_snake_case_and_camel_case_are_one_field(tmp_path: Path) -> None:
    texts = (
        "models: {m: {source: x, max_model_len: 64}}\npools: {default: {kv_cache_bytes: 1GiB}}\n",
        "models: {m: {source: x, maxModelLen: 64}}\npools: {default: {kvCacheBytes: 1GiB}}\n",
    )
    files = []
    for text in texts:
        path = tmp_path / "f.yaml"
        path.write_text(text)
        files.append(load_deployment_file(path))
    assert files[0] == files[1]
    assert files[0].models["m"].max_model_len == 64


def test_the_default_pool_needs_no_declaration(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("models: {a: {source: x}, b: {source: y, pool: g}}\npools: {g: {}, unused: {}}")
    assert list(load_deployment_file(path).pool_settings()) == ["default", "g"]


def test_all_faults_are_reported_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        "models:\n"
        "  chat:\n"
        "    source: x\n"
        "    dtpe: float32\n"
        "    dtype: int4\n"
        "    pool: gpuu\n"
        "  chat:\n"
        "    source: y\n"
        "  embed: {}\n"
        "pools:\n"
        "  gpu: {max_running: 5000}\n"
        "gateway:\n"
        '  port: "8000"\n'
        "prot: 1\n",
    )
    assert found == [
        "4: models.chat.dtpe: unknown key; did you mean 'dtype'?",
        "5: models.chat.dtype: must be one of auto, float32, bfloat16, float16, not 'int4'",
        "6: models.chat.pool: no pool 'gpuu'; did you mean 'gpu'?",
        "7: models.chat: is given twice; it is already on line 2",
        "9: models.embed.source: is missing; give a name of the catalogue (`deepseek models list`) "
        "or the path of a Hugging Face model directory, relative to the deployment file",
        "11: pools.gpu.max_running: must be a whole number from 1 to 1024, not 5000",
        "13: gateway.port: must be a whole number from 0 to 65535, not '8000'",
        "14: prot: unknown key; known: models, pools, gateway",
    ]


MODEL = "models: {m: {source: x, %s}}"
QOS = "models: {m: {source: x, qos: {%s}}}"
POOL = "models: {m: {source: x}}\npools: {default: {%s}}"
GATEWAY = "models: {m: {source: x}}\ngateway: {%s}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MODEL % "share: 0", "share: must be a number of more than 0 and at most 1000, not 0"),
        (MODEL % "share: much", "share: must be a number"),
        (MODEL % ("share: 1" + "0" * 400), "share: must be a number"),
        (MODEL % "max_model_len: 1.5", "max_model_len: must be a whole number of at least 8, not"),
        (MODEL % "max_model_len: true", "not true"),
        (MODEL % "pool: 3", "pool: must be text (in quotes"),
        (MODEL % "pool: gpu", "no pool 'gpu'; declare it under `pools`, or use one of: default"),
        (MODEL % "source: null", "m.source: is given twice"),
        (MODEL % "request_timeout_s: 3 days", "'3 days' is not a duration; write seconds"),
        (MODEL % "request_timeout_s: 0", "of more than 0, not 0"),
        (
            MODEL % "max_model_len: 64, default_max_tokens: 64",
            "must be less than max_model_len (64)",
        ),
        (MODEL % "max_model_len: 64, maxModelLen: 64", "in both spellings"),
        (MODEL % "maxModelLenn: 64", "did you mean 'maxModelLen'?"),
        (MODEL % "port: 64", "unknown key here; it belongs under 'gateway'"),
        (MODEL % "kv_cache_bytes: 64", "unknown key here; it belongs under 'pools.<name>'"),
        (POOL % "device: gpu", "device: must be `cpu`, `cuda`, `cuda:N`, or `auto`"),
        (POOL % "step_policy: fair", "no step policy 'fair'; known: fair-share, round-robin"),
        (POOL % "stepPolicy: fair-shar", "no step policy 'fair-shar'; did you mean 'fair-share'?"),
        (POOL % "kv_cache_bytes: lots", "'lots' is not a size; write bytes or"),
        (POOL % "kv_cache_bytes: 2.5", "must be a size (bytes, or a number with KiB, MiB, GiB)"),
        (POOL % "kv_cache_bytes: 1KiB", "of at least 1,048,576, not 1024"),
        (POOL % ("kv_cache_bytes: " + "9" * 400 + "GiB"), "is not a size"),
        (POOL % "start_timeout_s: 2024-01-01", "not 2024-01-01"),
        (
            QOS % "reserved_share: 1.5",
            "qos.reserved_share: must be a part of the whole (a number from",
        ),
        (QOS % "reservedShare: 120%", "qos.reservedShare: must be a part of the whole"),
        (QOS % "reserved_share: most", "'most' is not a part of a whole; write a number (0.9) or"),
        (QOS % "priority: urgent", "qos.priority: must be one of critical, high, normal, low"),
        (QOS % "late: drop", "qos.late: must be one of relegate, refuse"),
        (QOS % "max_wait_time: -1", "max_wait_time: must be a duration (seconds, or a number with"),
        (QOS % "maxWaitTime: -200ms", "'-200ms' is not a duration; write seconds"),
        (QOS % "deadline: {ttft: 0}", "qos.deadline.ttft: must be a duration"),
        (QOS % "deadline: {tttf: 1s}", "did you mean 'ttft'?"),
        (QOS % "policy: slck", "qos.policy: no batching policy 'slck'; did you mean 'slack'?"),
        (
            QOS % "policy: best",
            "no batching policy 'best'; known: aimd, fixed, greedy, slack, step",
        ),
        (
            QOS % "minBatchSize: 8, maxBatchSize: 4",
            "qos.minBatchSize: 8 is more than max_batch_size (4); lower it",
        ),
        (QOS % "min_batch_size: 0", "min_batch_size: must be a whole number from 1 to 1024, not 0"),
        (
            QOS % "strict: true, min_batch_size: 8",
            "qos.strict: waits for min_batch_size, and max_wait_time is 0; set it",
        ),
        (
            MODEL % "engine: vllm, qos: {policy: greedy}",
            "qos.policy: vLLM makes its batches by itself; leave this out of a model that",
        ),
        (
            MODEL % "engine: vllm, qos: {minBatchSize: 2, maxWaitTime: 1s}",
            "qos.minBatchSize: vLLM makes its batches by itself",
        ),
        (
            MODEL % "engine: vllm, qos: {maxBatchSize: 2}",
            "qos.maxBatchSize: vLLM makes its batches by itself",
        ),
        (
            QOS % "max_batch_size: 32" + "\npools: {default: {max_running: 16}}",
            "qos.max_batch_size: 32 is more than the pool's max_running (16); raise that",
        ),
        (
            QOS % "reserved_share: 0.5" + "\npools: {default: {stepPolicy: round-robin}}",
            "the pool's step_policy `round-robin` keeps no reservations; write `fair-share`",
        ),
        (
            MODEL % "pool: gpu, qos: {reserved_share: 0.5}",
            "m.pool: no pool 'gpu'; declare it under `pools`",
        ),
        (POOL % "max_step_time: 0", "max_step_time: must be a duration"),
        (POOL % "decision_record_bytes: 1KiB", "decision_record_bytes: must be a size"),
        (
            "models: {m: {source: x}}\npools: {a: {step_record: r}, b: {decisionRecord: r}}",
            "pools.b.decisionRecord: is the step_record of 'a' too; give each a file of its own",
        ),
        (GATEWAY % "admin: maybe", "gateway.admin: must be true or false"),
        ("models: {m: {source: x}}\npools: {default: }", "pools.default: is empty; give a mapping"),
        (
            "models: {m: {source: x}}\npools: [a]",
            "pools: must be a mapping (lines of `key: value`)",
        ),
        (
            "models: {m: {source: x}}\npools: {'a b': {}}",
            "the name 'a b' is not valid; use letters",
        ),
        (GATEWAY % "port: 70000", "port: must be a whole number from 0 to 65535, not 70000"),
        (GATEWAY % "host: [a]", "host: must be text"),
        (GATEWAY % "hosts: a", "did you mean 'host'?"),
        (GATEWAY % "models: 1", "unknown key here; it belongs at the top of the file"),
        ("models: {}", "models: must be a mapping with at least one entry"),
        ("models:", "models: is empty"),
        ("models: {m: x}", "models.m: must be a mapping"),
        ("models: {m: {source: ''}}", "models.m.source: must not be empty; give a name"),
        ("models: {'*': {source: x}}", "the name '*' is not valid; use letters, digits"),
        ("models: {" + "a" * 97 + ": {source: x}}", "is not valid; use letters"),
        ("gateway: {}", "models: is missing"),
        ("- a", "the file does not begin with a key; write `models:`"),
        ("just words", "the file does not begin with a key"),
        ("# only a comment", "the file is empty; write `models:`"),
        ("a: [1, 2", "not valid YAML"),
    ],
)
def test_a_mistake_is_explained_with_its_remedy(tmp_path: Path, text: str, words: str) -> None:
    found = faults(tmp_path, text)
    assert any(words in line for line in found), found
    assert not any("pydantic" in line or "Input should" in line for line in found), found


def test_reservations_of_one_pool_above_the_whole_device_are_refused(tmp_path: Path) -> None:
    text = """
models:
  a: {source: x, qos: {reservedShare: 70%}}
  b: {source: x, qos: {reserved_share: 0.4}}
  c: {source: x}
  other: {source: x, pool: gpu, qos: {reserved_share: 1}}
pools:
  gpu: {}
"""
    assert faults(tmp_path, text) == [
        "4: models.b.qos.reserved_share: a, b together reserve 110% of one device; lower them to "
        "100% at most, or give a model another pool"
    ]
    assert faults(tmp_path, text.replace("0.4", "30%")) == [
        "4: models.b.qos.reserved_share: the whole device is reserved, and nothing is left for c; "
        "leave some of it open, reserve a part for them too, or give them another pool"
    ]


def test_the_qos_that_kubernetes_manifests_write_is_what_policies_read(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(
        """
models:
  chat:
    source: x
    share: 3
    qos:
      priority: critical
      reservedShare: 90%
      policy: fixed
      minBatchSize: 16
      maxBatchSize: 48
      maxWaitTime: 200ms
      strict: true
      deadline: {ttft: 1.5s, itl: 50ms}
      late: refuse
  plain: {source: x}
"""
    )
    models = load_deployment_file(path).models
    assert models["chat"].to_qos() == QoS(
        priority=Priority.CRITICAL,
        reserved_share=0.9,
        weight=3.0,
        policy="fixed",
        min_batch_size=16,
        max_batch_size=48,
        max_wait_s=0.2,
        strict=True,
        ttft_s=1.5,
        itl_s=0.05,
        late=LateRequests.REFUSE,
    )
    assert models["plain"].to_qos() == QoS()


def test_a_file_as_data_is_what_it_is_as_text(tmp_path: Path) -> None:
    for path in EXAMPLES:
        file = load_deployment_file(path)
        assert parse_deployment(file.model_dump(mode="json", exclude_unset=True)) == file


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "must be a mapping with `models`"),
        ({"models": {"m": {"source": "x", "qos": {"maxWaitTime": -1}}}}, "m.qos.maxWaitTime: must"),
        ({"models": {"m": {"source": "x", "pool": "g"}}}, "models.m.pool: no pool 'g'"),
        ({"models": {"m": {"source": "x", "dtpe": 1}}}, "models.m.dtpe: unknown key"),
    ],
)
def test_faults_of_a_file_as_data_are_told_in_the_same_words(data: Any, words: str) -> None:
    with pytest.raises(DeploymentFileError) as caught:
        parse_deployment(data)
    assert words in caught.value.message
    assert "pydantic" not in caught.value.message


def test_an_unreadable_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DeploymentFileError, match="no such file; name one with -f"):
        load_deployment_file(tmp_path / "absent.yaml")
    with pytest.raises(DeploymentFileError, match="is a directory"):
        load_deployment_file(tmp_path)
    with pytest.raises(DeploymentFileError, match="cannot be read"):
        load_deployment_file(tmp_path / ("a" * 300))
    assert faults(tmp_path, b"models:\n  # caf\xe9\n") == [
        "2: is not UTF-8 text; save the file in that encoding"
    ]


def test_a_byte_order_mark_is_not_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodels: {m: {source: x}}\n")
    assert load_deployment_file(path).models["m"].source == "x"


def test_the_class_itself_refuses_a_pool_that_does_not_exist() -> None:
    with pytest.raises(ValidationError, match=r"models\.m\.pool: no pool 'g'"):
        DeploymentFile.model_validate({"models": {"m": {"source": "x", "pool": "g"}}})


def test_the_schema_describes_every_setting_and_refuses_what_the_file_refuses() -> None:
    schema = deployment_file_schema()
    described = dict(_described(schema))
    for setting in iter_settings(DeploymentFile):
        assert described[setting.path[-1]] == " ".join((setting.field.description or "").split())
    is_valid = jsonschema_rs.validator_for(schema).is_valid
    assert is_valid({"models": {"m": {"source": "x"}}})
    for wrong in (
        {},
        {"models": {}},
        {"models": {"m": {}}},
        {"models": {"m": {"source": "x", "dtpe": 1}}},
        {"models": {"bad name": {"source": "x"}}},
        {"models": {"m": {"source": "x"}}, "extra": 1},
        {"models": {"m": {"source": "x"}}, "pools": {"g": {"kv_cache_bytes": 5}}},
        {"models": {"m": {"source": "x"}}, "gateway": {"port": 70000}},
    ):
        assert not is_valid(wrong), wrong


def _described(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for section in (schema, *schema["$defs"].values()):
        for name, value in section["properties"].items():
            yield name, value["description"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
near_misses = st.fixed_dictionaries(
    {
        "models": st.dictionaries(
            st.sampled_from(["m", "a b", ""]),
            json_values
            | st.fixed_dictionaries(
                {},
                optional={
                    "source": json_values,
                    "pool": json_values,
                    "share": json_values,
                    "qos": json_values
                    | st.fixed_dictionaries(
                        {},
                        optional={
                            "reserved_share": json_values,
                            "policy": json_values,
                            "deadline": json_values,
                        },
                    ),
                },
            ),
            max_size=2,
        )
    },
    optional={"pools": json_values, "gateway": json_values, "other": json_values},
)


@given(data=json_values | near_misses)
def test_no_document_escapes_as_anything_but_a_deployment_file_error(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with contextlib.suppress(DeploymentFileError):
        load_deployment_file(path)


def test_adapters_have_names_of_their_own_and_are_no_more_than_may_be_loaded(
    tmp_path: Path,
) -> None:
    text = """
models:
  a:
    source: x
    adapters:
      b: p
      shared: p
      fine: p
    maxAdapters: 2
  b:
    source: y
    adapters:
      shared: p
      "not valid": p
"""
    assert faults(tmp_path, text) == [
        "5: models.a.adapters: lists 3; max_adapters is 2: raise it",
        "6: models.a.adapters.b: a model has this name; give it another",
        "7: models.a.adapters.shared: an adapter of 'b' has this name; give it another",
        "13: models.b.adapters.shared: an adapter of 'a' has this name; give it another",
        "14: models.b.adapters.not valid: the name 'not valid' is not valid; use letters, digits "
        "and . _ - : /, beginning with a letter or digit, at most 96",
    ]
