"""Settings that let models come and go, and what is wrong with them together."""

from pathlib import Path

import pytest

from deepseek.core.errors import ConfigurationError, DeploymentFileError
from deepseek.deployment_file import DeploymentFile, parse_deployment
from deepseek.serving.residency_faults import check_engine_lets_go
from deepseek.serving.settings import ModelSettings
from deepseek.weights.model_directory import open_model_directory


def parse(model: dict[str, object], pool: dict[str, object] | None = None) -> DeploymentFile:
    return parse_deployment(
        {"models": {"m": {"source": "s", **model}}, "pools": {"default": pool or {}}}
    )


def test_both_spellings_and_units_are_read() -> None:
    file = parse(
        {"minResident": 0, "keepAlive": "10m"},
        {"weightsBytes": "1GiB", "preload_bytes_per_s": "200MiB", "preloading": "gdsf"},
    )
    model, pool = file.models["m"], file.pools["default"]
    assert (model.min_resident, model.keep_alive) == (0, 600.0)
    assert (pool.weights_bytes, pool.preload_bytes_per_s) == (2**30, 200 * 2**20)
    assert pool.preloading == "gdsf"
    assert pool.host_weights_bytes == 0
    beside = parse({}, {"device": "cuda:1", "hostWeightsBytes": "64GiB"})
    assert beside.pools["default"].host_weights_bytes == 64 * 2**30
    assert parse({}).models["m"].min_resident == 1


@pytest.mark.parametrize(
    ("model", "pool", "told"),
    [
        (
            {"keepAlive": "10m"},
            {},
            "models.m.keepAlive: has no effect while min_resident is 1, the default; write "
            "`min_resident: 0` too",
        ),
        ({"min_resident": 1, "keep_alive": 5}, {}, "models.m.keep_alive: has no effect"),
        ({"minResident": 0, "engine": "vllm"}, {}, "models.m.minResident: vLLM does not let"),
        ({"min_resident": 2}, {}, "models.m.min_resident: must be a whole number from 0 to 1"),
        ({"min_resident": 0, "keep_alive": 0}, {}, "models.m.keep_alive: must be a duration"),
        (
            {},
            {"device": "cpu", "hostWeightsBytes": "1GiB"},
            "pools.default.hostWeightsBytes: is for pools on a GPU; on a CPU the host's memory is "
            "the device: leave it out",
        ),
        ({}, {"host_weights_bytes": "much"}, "pools.default.host_weights_bytes: 'much' is not"),
        ({}, {"preloading": "fore"}, "pools.default.preloading: no preloading policy 'fore'; "),
    ],
)
def test_what_makes_no_sense_is_said_with_its_place(
    model: dict[str, object], pool: dict[str, object], told: str
) -> None:
    with pytest.raises(DeploymentFileError) as fault:
        parse(model, pool)
    assert told in fault.value.message


def test_a_model_that_vllm_would_run_may_not_be_absent(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    # Imported on use, as the fixtures' writers are.
    from tests.tiny_models import said_to_be_gpt_neox  # noqa: PLC0415

    foreign = said_to_be_gpt_neox(tiny_llama_dir, tmp_path / "foreign")
    directory = open_model_directory(foreign, any_decoder=True)
    settings = ModelSettings(source="-", min_resident=0)
    with pytest.raises(ConfigurationError, match=r"models\.m\.min_resident: vLLM"):
        check_engine_lets_go("m", settings, directory)
    check_engine_lets_go("m", settings, open_model_directory(tiny_llama_dir))
    check_engine_lets_go("m", ModelSettings(source="-"), directory)
