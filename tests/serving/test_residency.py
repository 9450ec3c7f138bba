"""Models that come and go in a real worker process."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.core.errors import ModelLoading, ModelUnavailable
from deepseek.core.load import ModelLoad
from deepseek.core.residency import Residency
from deepseek.serving.adapted import AdaptedGenerator
from deepseek.serving.platform import Platform
from deepseek.serving.settings import ModelSettings
from tests.lora import write_adapter
from tests.serving.workers import collect, greedy_options, running_platform

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # PEFT 0.21
]

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 70 MB: enough to be seen in the memory of a process."""
    # Imported on use, as the other fixtures' writers are.
    from tests.tiny_models import write_llama  # noqa: PLC0415

    path = tmp_path_factory.mktemp("wide") / "llama"
    return write_llama(path, hidden_size=512, intermediate_size=2048, num_hidden_layers=4)


def absent(**settings: Any) -> ModelSettings:
    return ModelSettings(source="-", min_resident=0, **settings)


def load_of(platform: Platform, model: str) -> ModelLoad:
    snapshot = platform.replicas[0].snapshot
    assert snapshot is not None
    return next(load for load in snapshot.models if load.model == model)


def residency(platform: Platform, model: str) -> Residency | None:
    return next(s.residency for s in platform.statuses() if s.name == model)


async def until(is_so: Callable[[], bool], *, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_so():
            await asyncio.sleep(0.01)


async def until_told(platform: Platform) -> None:
    """Wait for a load report that is younger than this call."""
    before = platform.replicas[0].snapshot
    await until(lambda: platform.replicas[0].snapshot is not before)


async def rss_bytes(platform: Platform) -> int:
    await until_told(platform)
    snapshot = platform.replicas[0].snapshot
    assert snapshot is not None
    return snapshot.rss_bytes


def tell(platform: Platform, model: str) -> list[str]:
    """Return what has been decided about a model."""
    return [kept.decision.action for kept in platform.decisions(model)]


async def answer(platform: Platform, model: str, num_tokens: int = 8) -> list[int]:
    tokens, _, _ = await collect(platform.generator(model), PROMPT, greedy_options(num_tokens))
    return tokens


async def test_a_request_loads_an_absent_model_and_gets_the_same_answer(
    tiny_llama_dir: Path, tiny_bert_dir: Path
) -> None:
    models = {"there": tiny_llama_dir, "away": tiny_llama_dir, "encoder": tiny_bert_dir}
    settings = {"away": absent(max_model_len=64), "encoder": absent()}
    async with running_platform(models, settings=settings) as platform:
        assert platform.ready, "a model on disk takes requests"
        assert residency(platform, "away") is Residency.DISK
        assert residency(platform, "there") is Residency.READY
        assert platform.generator("away").max_model_len == 64
        expected = await answer(platform, "there")
        answers = await asyncio.gather(*(answer(platform, "away") for _ in range(5)))
        assert answers == [expected] * 5
        assert residency(platform, "away") is Residency.READY
        assert len((await platform.encoder("encoder").encode(["a sentence"])).rows) == 1
        assert await answer(platform, "away") == expected
        await until_told(platform)
        load = load_of(platform, "away")
        assert (load.num_hits, load.num_misses, load.num_loads) == (1, 5, 1)
        assert load.load_s is not None
        assert load.weights_bytes > 0
        assert tell(platform, "away") == ["load", "loaded"]


async def test_an_idle_model_gives_its_memory_back_and_comes_again(
    tiny_llama_dir: Path, wide_dir: Path
) -> None:
    models = {"there": tiny_llama_dir, "wide": wide_dir}
    async with running_platform(models, settings={"wide": absent(keep_alive=0.3)}) as platform:

        async def come_and_go() -> list[int]:
            tokens = await answer(platform, "wide")
            loaded_bytes.append(await rss_bytes(platform))
            await until(lambda: residency(platform, "wide") is Residency.DISK)
            return tokens

        loaded_bytes: list[int] = []
        first = await come_and_go()
        # The first time has brought code and threads that stay.
        await asyncio.sleep(0.5)
        away_bytes = await rss_bytes(platform)
        for _ in range(3):
            assert await come_and_go() == first
            assert loaded_bytes[-1] > away_bytes + 50e6
            async with asyncio.timeout(5):  # beside the loop, right after it has left
                while await rss_bytes(platform) > away_bytes + 20e6:  # the heap has holes
                    pass
        assert load_of(platform, "wide").weights_bytes == 0
        assert load_of(platform, "wide").num_evictions == 4
        assert tell(platform, "wide") == ["load", "loaded", "evict"] * 4


async def test_streams_go_on_while_another_model_is_loaded(
    tiny_llama_dir: Path, wide_dir: Path
) -> None:
    models = {"there": tiny_llama_dir, "wide": wide_dir}
    async with running_platform(models, settings={"wide": absent()}) as platform:
        loading = asyncio.create_task(answer(platform, "wide"))
        await until(lambda: residency(platform, "wide") is Residency.LOADING)
        num_meanwhile = 0
        async for _ in platform.generator("there").generate([PROMPT], greedy_options(500)):
            num_meanwhile += residency(platform, "wide") is Residency.LOADING
        await loading
        assert num_meanwhile > 10


async def test_a_request_that_is_due_before_the_load_ends_is_told_to_come_back(
    wide_dir: Path, tiny_llama_dir: Path
) -> None:
    hurried = absent(qos={"deadline": {"ttft": "2ms"}})
    models = {"wide": wide_dir, "there": tiny_llama_dir}
    async with running_platform(models, settings={"wide": hurried}) as platform:
        with pytest.raises(ModelLoading, match="'wide' is being loaded") as refused:
            await answer(platform, "wide")
        assert refused.value.retry_after_s == 1
        await until(lambda: residency(platform, "wide") is Residency.READY)
        assert len(await answer(platform, "wide")) == 8
        await until_told(platform)
        assert (load_of(platform, "wide").num_hits, load_of(platform, "wide").num_misses) == (1, 1)


async def test_a_load_that_fails_tells_all_who_wait_why_and_the_next_one_tries_again(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_llama_dir, broken)
    models = {"broken": broken, "there": tiny_llama_dir}
    async with running_platform(models, settings={"broken": absent()}) as platform:
        weights = broken / "model.safetensors"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1000])
        asked = [answer(platform, "broken") for _ in range(3)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, ModelUnavailable)
            assert "the weights are damaged" in outcome.message
        assert residency(platform, "broken") is Residency.FAILED
        assert platform.ready
        weights.write_bytes(content)
        assert await answer(platform, "broken") == await answer(platform, "there")
        await until_told(platform)
        assert tell(platform, "broken") == ["load", "load-failed", "load", "loaded"]


async def test_a_request_that_leaves_while_its_model_is_loaded_is_forgotten(
    wide_dir: Path, tiny_llama_dir: Path
) -> None:
    models = {"wide": wide_dir, "there": tiny_llama_dir}
    async with running_platform(models, settings={"wide": absent()}) as platform:
        leaving = asyncio.create_task(answer(platform, "wide", 200))
        await until(lambda: residency(platform, "wide") is Residency.LOADING)
        leaving.cancel()
        await until(lambda: residency(platform, "wide") is Residency.READY)
        await until_told(platform)
        load = load_of(platform, "wide")
        assert (load.num_waiting, load.num_running, load.num_steps) == (0, 0, 0)


async def test_models_take_turns_where_the_weights_have_room_for_one(
    tiny_llama_dir: Path, wide_dir: Path
) -> None:
    models = {"pinned": tiny_llama_dir, "a": wide_dir, "b": wide_dir}
    settings = {"a": absent(), "b": absent()}
    async with running_platform(models, settings=settings, weights_bytes=100_000_000) as platform:
        expected = await answer(platform, "a")
        assert residency(platform, "a") is Residency.READY
        # While one of them runs, the other one's request waits.
        running = asyncio.create_task(answer(platform, "a", 200))
        await until_told(platform)
        await until(lambda: load_of(platform, "a").num_running == 1)
        assert await answer(platform, "b") == expected
        assert running.done()
        assert len(await running) == 200
        assert residency(platform, "a") is Residency.DISK
        assert residency(platform, "pinned") is Residency.READY
        assert tell(platform, "a") == ["load", "loaded", "evict"]
        reason = platform.decisions("a")[-1].decision.reason
        assert reason == "a request waits for b, which needs the room"


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
async def test_models_of_a_gpu_take_turns_by_way_of_the_host_tier(
    tiny_llama_dir: Path, wide_dir: Path
) -> None:
    models = {"there": tiny_llama_dir, "a": wide_dir, "b": wide_dir}
    settings = {"a": absent(), "b": absent(max_model_len=64)}
    async with running_platform(
        models,
        settings=settings,
        device="cuda",
        weights_bytes=100_000_000,
        host_weights_bytes=200_000_000,
    ) as platform:
        expected = await answer(platform, "a")
        assert await answer(platform, "b") == expected
        assert residency(platform, "a") is Residency.HOST
        for _ in range(3):
            for name, other in (("a", "b"), ("b", "a")):
                running = asyncio.create_task(answer(platform, "there", 100))
                assert await answer(platform, name) == expected
                assert residency(platform, other) is Residency.HOST
                assert len(await running) == 100
        await until_told(platform)
        load = load_of(platform, "a")
        assert (load.num_loads, load.num_evictions) == (4, 4)
        assert load.weights_bytes == 0
        assert (load.host_weights_bytes or 0) > 60_000_000
        assert tell(platform, "a") == ["load", "loaded", "evict"] * 4
        woken = [kept.decision for kept in platform.decisions("a")][3]
        assert woken.reason == "a request waits for a, which is in the host tier"


async def test_what_never_has_room_is_said_at_once_or_at_the_start(
    tiny_llama_dir: Path, wide_dir: Path
) -> None:
    models = {"pinned": wide_dir, "late": wide_dir, "away": wide_dir}
    settings = {"away": absent()}
    async with running_platform(models, settings=settings, weights_bytes=100_000_000) as platform:
        info = platform.replicas[0].model("late")
        assert info is not None
        assert "pools.default.weights_bytes: the weights of model 'late' take" in (info.error or "")
        with pytest.raises(ModelUnavailable, match=r"'away' needs 6\d MiB"):
            await answer(platform, "away")


async def test_adapters_are_loaded_dropped_and_kept_while_their_model_comes_and_goes(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate("ab"):
        write_adapter(tiny_llama_dir, tmp_path / name, seed=seed)
    settings = {
        "base": absent(
            keep_alive=0.2, adapters={"a": str(tmp_path / "a")}, adapter_dirs=[str(tmp_path)]
        )
    }
    async with running_platform({"base": tiny_llama_dir}, settings=settings) as platform:

        async def ask(name: str) -> list[int]:
            adapted = platform.generator(name)
            assert isinstance(adapted, AdaptedGenerator)
            return (await collect(adapted, PROMPT, greedy_options(8)))[0]

        def is_away() -> bool:
            return residency(platform, "base") is Residency.DISK

        assert is_away()
        first = await ask("a")
        await until(is_away)
        await platform.load_adapter("b", "b", deployment="base")
        second = await ask("b")
        await until(is_away)
        assert await ask("b") == second, "it came with the next load"
        assert await ask("a") == first
        assert first != second
        await until(is_away)
        await platform.drop_adapter("b")
        assert is_away(), "for that the model need not be there"
        assert await ask("a") == first
        assert "b" not in {status.name for status in platform.statuses()}
