"""A deployment file applied to real workers: taken between two steps, as a whole or not at all."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepseek.administration import LiveDeployment, fixed_differences
from deepseek.app import prepare, started_platform
from deepseek.core.errors import ConfigurationError, InvalidRequest, ModelNotFound, Unavailable
from deepseek.core.qos import QoS
from deepseek.deployment_file import DeploymentFile, parse_deployment
from deepseek.scheduling.decision_log import replay
from deepseek.scheduling.precision.policy import RequestKind
from deepseek.serving.base import SettingChange
from deepseek.serving.platform import Platform
from deepseek.weights.progress import SilentProgress
from tests.serving.workers import collect, greedy_options
from tests.tiny_models import said_to_be_gpt_neox

real_workers = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(120)]

Data = dict[str, Any]


def two_pools(llama: Path, bert: Path, records: Path) -> Data:
    def pool(name: str) -> Data:
        return {
            "device": "cpu",
            "num_threads": 1,
            "kv_cache_bytes": "64MiB",
            "snapshot_interval_s": 0.05,
            "decision_record": str(records / f"{name}.jsonl"),
        }

    return {
        "models": {
            "chat": {"source": str(llama), "dtype": "float32"},
            "embed": {"source": str(bert), "dtype": "float32"},
            "far": {"source": str(bert), "dtype": "float32", "pool": "second"},
        },
        "pools": {"default": pool("default"), "second": pool("second")},
    }


def changed(data: Data, **models: Data) -> Data:
    """Return the file with more settings under its models."""
    copy: Data = json.loads(json.dumps(data))
    for name, more in models.items():
        copy["models"][name] |= more
    return copy


@asynccontextmanager
async def live(data: Data, tmp_path: Path) -> AsyncIterator[tuple[LiveDeployment, Platform]]:
    file = parse_deployment(data)
    prepared, directories = prepare(file, base_dir=tmp_path, progress=SilentProgress())
    async with started_platform(prepared, directories, log_level="warning") as platform:
        yield LiveDeployment(file, platform), platform


def qos_told_to_workers(records: Path, pool: str) -> list[tuple[str, Data]]:
    """Return what a pool's worker has taken: its record says so itself."""
    lines = map(json.loads, (records / f"{pool}.jsonl").read_text().splitlines())
    return [(line["model"], line["qos"]) for line in lines if line["type"] in ("began", "qos")]


async def until_recorded(records: Path, pool: str, count: int) -> list[tuple[str, Data]]:
    while len(told := qos_told_to_workers(records, pool)) < count:
        await asyncio.sleep(0.02)
    return told


def qos_of(platform: Platform) -> dict[str, QoS]:
    return {name: qos for replica in platform.replicas for name, qos in replica.qos.items()}


class TestLive:
    pytestmark = real_workers

    async def test_shares_and_qos_change_within_two_seconds_under_load(
        self, tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path: Path
    ) -> None:
        data = two_pools(tiny_llama_dir, tiny_bert_dir, tmp_path)
        async with live(data, tmp_path) as (deployment, platform):
            generator = platform.generator("chat")
            busy = [
                asyncio.create_task(collect(generator, [n + 1, 5, 6], greedy_options(300)))
                for n in range(4)
            ]
            await asyncio.sleep(0.1)
            wanted = changed(
                data,
                chat={"qos": {"priority": "critical", "reservedShare": "60%"}},
                embed={"share": 2},
            )
            async with asyncio.timeout(2):
                changes = await deployment.apply(wanted)
            assert not all(task.done() for task in busy), "the load was meant to go on"
            assert sorted(changes, key=lambda c: (c.model, c.setting)) == [
                SettingChange(
                    model="chat", setting="qos.priority", before="normal", after="critical"
                ),
                SettingChange(model="chat", setting="qos.reserved_share", before=0.0, after=0.6),
                SettingChange(model="embed", setting="share", before=1.0, after=2.0),
            ]
            told = await until_recorded(tmp_path, "default", 4)
            assert {model: (qos["reserved_share"], qos["weight"]) for model, qos in told[2:]} == {
                "chat": (0.6, 1.0),
                "embed": (0.0, 2.0),
            }
            assert [reason for _, _, reason in await asyncio.gather(*busy)] == ["length"] * 4
            # The file that is served now is the new one.
            assert await deployment.apply(wanted) == []
            assert len(qos_told_to_workers(tmp_path, "second")) == 1, "nothing changed there"

    async def test_another_policy_is_taken_and_the_record_still_replays(
        self, tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path: Path
    ) -> None:
        data = two_pools(tiny_llama_dir, tiny_bert_dir, tmp_path)
        async with live(data, tmp_path) as (deployment, platform):
            generator = platform.generator("chat")
            await collect(generator, [1, 2, 3], greedy_options(20))
            await deployment.apply(changed(data, chat={"qos": {"policy": "aimd"}}))
            async with asyncio.TaskGroup() as group:
                for n in range(24):
                    group.create_task(collect(generator, [n + 1, 2], greedy_options(60)))
            while not deployment.decisions("chat"):
                await asyncio.sleep(0.02)
            kept = deployment.decisions("chat")
            assert {one.decision.action for one in kept} == {"raise-batch-cap"}
            assert {one.decision.model for one in kept} == {"chat"}
            assert deployment.decisions("far") == ()
            with pytest.raises(ModelNotFound):
                deployment.decisions("nobody")
        with (tmp_path / "default.jsonl").open("rb") as lines:
            result = replay(lines)
        assert result.is_same
        assert result.models["chat"].policies == ["slack", "aimd"]
        assert result.models["chat"].num_decisions >= len(kept)

    async def test_a_worker_that_restarts_begins_with_the_new_qos(
        self, tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path: Path
    ) -> None:
        data = two_pools(tiny_llama_dir, tiny_bert_dir, tmp_path)
        async with live(data, tmp_path) as (deployment, platform):
            wanted = changed(data, far={"qos": {"maxWaitTime": "30ms"}})
            await deployment.apply(wanted)
            replica = next(r for r in platform.replicas if r.pool == "second")
            assert replica.pid is not None
            os.kill(replica.pid, signal.SIGKILL)
            while platform.ready:
                await asyncio.sleep(0.01)
            with pytest.raises(Unavailable, match="pool 'second': its worker died"):
                await deployment.apply(changed(data, chat={"share": 5}, far={"share": 5}))
            assert qos_of(platform)["chat"] == QoS(), "no pool takes what one cannot"
            while not platform.ready:
                await asyncio.sleep(0.02)
            ((model, qos),) = await until_recorded(tmp_path, "second", 1)
            assert (model, qos["max_wait_s"]) == ("far", 0.03)

    async def test_what_one_worker_refuses_is_taken_back_from_the_others(
        self, tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path: Path
    ) -> None:
        data = two_pools(tiny_llama_dir, tiny_bert_dir, tmp_path)
        async with live(data, tmp_path) as (_, platform):
            before = qos_of(platform)
            # A policy that only the platform's environment knows passes the check of the file.
            models = parse_deployment(changed(data, chat={"share": 9.0})).models
            strange = models["far"].qos.model_copy(update={"policy": "elsewhere"})
            wanted = {
                "chat": models["chat"],
                "far": models["far"].model_copy(update={"qos": strange}),
            }
            with pytest.raises(ConfigurationError, match="'elsewhere' is unknown"):
                await platform.reconfigure(wanted)
            assert qos_of(platform) == before
            told = await until_recorded(tmp_path, "default", 5)
            assert [qos["weight"] for model, qos in told if model == "chat"] == [1.0, 9.0, 1.0]
            assert len(qos_told_to_workers(tmp_path, "second")) == 1

    async def test_batching_that_vllm_would_not_heed_is_refused_while_serving(
        self, tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path: Path
    ) -> None:
        data = two_pools(tiny_llama_dir, tiny_bert_dir, tmp_path)
        foreign = said_to_be_gpt_neox(tiny_llama_dir, tmp_path / "neox")
        data["models"]["foreign"] = {"source": str(foreign), "pool": "second"}
        # `engine: auto` leaves it to vLLM, which a pool's own environment may have or not.
        data["pools"]["second"]["python"] = sys.executable
        async with live(data, tmp_path) as (deployment, platform):
            wanted = changed(data, chat={"share": 2}, foreign={"qos": {"policy": "greedy"}})
            with pytest.raises(InvalidRequest, match=r"models\.foreign\.qos\.policy: .*vLLM"):
                await deployment.apply(wanted)
            assert set(qos_of(platform).values()) == {QoS()}
            changes = await deployment.apply(changed(data, foreign={"share": 2}))
            assert [(c.model, c.after) for c in changes] == [("foreign", 2.0)]
            assert qos_of(platform)["foreign"].weight == 2.0

    async def test_precision_changes_for_the_next_request(
        self, tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path: Path
    ) -> None:
        data = two_pools(tiny_llama_dir, tiny_bert_dir, tmp_path)
        data["models"]["chat"]["quantization"] = "nested"
        kind = RequestKind(num_prompt_tokens=1, max_answer_tokens=1)

        def chosen() -> str:
            choice = platform.generator("chat").choose_precision(kind, named=None)
            assert choice is not None
            return choice.precision

        async with live(data, tmp_path) as (deployment, platform):
            assert chosen() == "int8"
            coarse = changed(data, chat={"precision": {"default": "int4", "shedding": {}}})
            told = {c.setting: (c.before, c.after) for c in await deployment.apply(coarse)}
            assert told["precision.default"] == (None, "int4")
            assert told["precision.shedding.wait"] == (None, 2.0)
            assert chosen() == "int4"
            told = {c.setting: (c.before, c.after) for c in await deployment.apply(data)}
            assert told["precision.default"] == ("int4", None)
            assert chosen() == "int8"

    async def test_a_file_that_differs_elsewhere_changes_nothing(
        self, tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path: Path
    ) -> None:
        data = two_pools(tiny_llama_dir, tiny_bert_dir, tmp_path)
        async with live(data, tmp_path) as (deployment, platform):
            wanted = changed(data, chat={"share": 2, "dtype": "bfloat16"})
            with pytest.raises(InvalidRequest, match=r"models\.chat\.dtype: cannot change from"):
                await deployment.apply(wanted)
            wanted = changed(data, chat={"qos": {"reserved_share": 1}})
            with pytest.raises(InvalidRequest, match="the whole device is reserved"):
                await deployment.apply(wanted)
            assert qos_of(platform) == dict.fromkeys(("chat", "embed", "far"), QoS())


FILE: Data = yaml.safe_load(
    """
models:
  a: {source: x, pool: g}
  b: {source: y}
pools:
  g: {device: cpu, max_running: 4}
  unused: {device: cuda}
gateway: {port: 8001}
"""
)


def parsed(data: Data) -> DeploymentFile:
    return parse_deployment(data)


def test_every_difference_that_needs_a_restart_is_told() -> None:
    other: Data = json.loads(json.dumps(FILE))
    del other["models"]["b"]
    other["models"]["c"] = {"source": "z"}
    other["models"]["a"] |= {"dtype": "float32", "share": 4, "qos": {"policy": "greedy"}}
    other["pools"]["g"] |= {"max_running": 8, "cpus": "0-1"}
    other["gateway"] = {"port": 8001, "max_n": 2}
    told = list(fixed_differences(parsed(FILE), parsed(other)))
    assert told == [
        "models.c: is not served; restart `deepseek serve` to add a model",
        "models.b: is missing here; restart `deepseek serve` to remove a model",
        "models.a.dtype: cannot change from auto to float32 while it serves; restart `deepseek "
        "serve` for that",
        "pools.g.cpus: cannot change from its default to 0-1 while it serves; restart `deepseek "
        "serve` for that",
        "pools.g.max_running: cannot change from 4 to 8 while it serves; restart `deepseek serve` "
        "for that",
        "gateway.max_n: cannot change from 16 to 2 while it serves; restart `deepseek serve` for "
        "that",
    ]


def test_saying_what_holds_anyway_is_no_difference() -> None:
    other: Data = json.loads(json.dumps(FILE))
    other["pools"] |= {"default": {}, "unused": {"device": "cpu"}}
    other["models"]["a"] |= {"task": "auto", "share": 2}
    assert list(fixed_differences(parsed(FILE), parsed(other))) == []
