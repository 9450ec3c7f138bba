"""Adapters over a real worker process: beside one another, loaded live, through a crash."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from deepseek.core.errors import (
    AdapterLoadingOff,
    AdapterNotFound,
    AdapterRejected,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    Unavailable,
    WrongTask,
)
from deepseek.serving.platform import Platform
from deepseek.serving.settings import ModelSettings
from tests.lora import greedy_answer, write_adapter
from tests.serving.workers import collect, greedy_options, running_platform

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # PEFT 0.21
]

PROMPT = [5, 6, 7, 8]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def adapters(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of three adapters."""
    path = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("a", "b", "c")):
        write_adapter(tiny_llama_dir, path / name, seed=seed)
    return path


@pytest.fixture(scope="module")
def expected(tiny_llama_dir: Path, adapters: Path) -> dict[str, list[int]]:
    """What PEFT answers with each adapter, and without."""
    answers = {
        name: greedy_answer(tiny_llama_dir, adapters / name, PROMPT, NUM_TOKENS) for name in "abc"
    }
    answers[""] = greedy_answer(tiny_llama_dir, None, PROMPT, NUM_TOKENS)
    assert len({tuple(answer) for answer in answers.values()}) == 4
    return answers


def settings(adapters: Path, *, listed: str = "", limit: int = 8) -> dict[str, ModelSettings]:
    return {
        "base": ModelSettings(
            source="base",
            adapters={name: str(adapters / name) for name in listed},
            adapter_dirs=[str(adapters)],
            max_adapters=limit,
        )
    }


async def answer(platform: Platform, name: str) -> list[int]:
    tokens, _, _ = await collect(platform.generator(name), PROMPT, greedy_options(NUM_TOKENS))
    return tokens


async def kill_worker(platform: Platform) -> None:
    pid = platform.replicas[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while platform.ready:
        await asyncio.sleep(0.01)
    while not platform.ready:
        await asyncio.sleep(0.02)


async def test_adapters_of_the_file_answer_beside_one_another_and_their_base(
    tiny_llama_dir: Path, adapters: Path, expected: dict[str, list[int]]
) -> None:
    given = settings(adapters, listed="ab")
    async with running_platform({"base": tiny_llama_dir}, settings=given) as platform:
        names = ["a", "base", "b"] * 3
        answers = await asyncio.gather(*(answer(platform, name) for name in names))
        assert answers == [expected["" if name == "base" else name] for name in names]
        parents = {status.name: status.parent for status in platform.statuses()}
        assert parents == {"base": "", "a": "base", "b": "base"}


async def test_an_adapter_is_loaded_used_replaced_and_dropped_live(
    tiny_llama_dir: Path, adapters: Path, expected: dict[str, list[int]]
) -> None:
    given = settings(adapters)
    async with running_platform({"base": tiny_llama_dir}, settings=given) as platform:
        status = await platform.load_adapter("x", "a")
        assert (status.parent, status.ready) == ("base", True)
        assert await answer(platform, "x") == expected["a"]
        with pytest.raises(AdapterRejected, match="loaded already"):
            await platform.load_adapter("x", "b")
        running = platform.generator("x").generate([PROMPT], greedy_options(NUM_TOKENS))
        first = await anext(running)
        await platform.load_adapter("x", "b", replace=True)
        assert await answer(platform, "x") == expected["b"]
        rest = [token async for delta in running for token in delta.token_ids]
        assert [*first.token_ids, *rest] == expected["a"], "it began with the old weights"
        running = platform.generator("x").generate([PROMPT], greedy_options(NUM_TOKENS))
        first = await anext(running)
        await platform.drop_adapter("x")
        with pytest.raises(ModelNotFound, match="served: base"):
            platform.generator("x")
        rest = [token async for delta in running for token in delta.token_ids]
        assert [*first.token_ids, *rest] == expected["b"]
        assert await answer(platform, "base") == expected[""]


async def test_what_was_loaded_and_dropped_live_survives_a_crash_of_the_worker(
    tiny_llama_dir: Path, adapters: Path, expected: dict[str, list[int]], tmp_path: Path
) -> None:
    own = tmp_path / "adapters"
    shutil.copytree(adapters, own)
    given = settings(own, listed="a")
    async with running_platform({"base": tiny_llama_dir}, settings=given) as platform:
        await platform.load_adapter("live", "b")
        await platform.load_adapter("gone", "c")
        await platform.drop_adapter("a")
        shutil.rmtree(own / "c")
        await kill_worker(platform)
        assert await answer(platform, "live") == expected["b"]
        with pytest.raises(ModelNotFound):
            platform.generator("a")
        with pytest.raises(ModelUnavailable, match=r"'gone' could not be loaded: .*cannot be read"):
            await answer(platform, "gone")
        assert platform.ready, "an adapter's fault is not its deployment's"
        (status,) = [status for status in platform.statuses() if status.name == "gone"]
        assert not status.ready
        await platform.drop_adapter("live")
        assert await answer(platform, "base") == expected[""]


async def test_a_load_goes_on_when_its_caller_leaves(
    tiny_llama_dir: Path, adapters: Path, expected: dict[str, list[int]]
) -> None:
    given = settings(adapters)
    async with running_platform({"base": tiny_llama_dir}, settings=given) as platform:
        loading = asyncio.create_task(platform.load_adapter("x", "a"))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="is being loaded or dropped"):
            await platform.load_adapter("x", "b")
        loading.cancel()
        while len(platform.statuses()) == 1:
            await asyncio.sleep(0.01)
        assert await answer(platform, "x") == expected["a"]


async def test_what_cannot_be_loaded_is_refused_and_the_others_serve_on(
    tiny_llama_dir: Path, tiny_qwen3_dir: Path, tiny_bert_dir: Path, adapters: Path,
    expected: dict[str, list[int]],
) -> None:  # fmt: skip
    models = {"base": tiny_llama_dir, "other": tiny_qwen3_dir, "e": tiny_bert_dir}
    given = settings(adapters, listed="a", limit=1)
    given["other"] = ModelSettings(source="other", adapter_dirs=[str(adapters)])
    given["closed"] = ModelSettings(source="closed")
    models["closed"] = tiny_llama_dir
    async with running_platform(models, settings=given) as platform:
        with pytest.raises(AdapterRejected, match="max_adapters is 1"):
            await platform.load_adapter("x", "b", deployment="base")
        with pytest.raises(AdapterRejected, match="another base model"):
            await platform.load_adapter("x", "b", deployment="other")
        with pytest.raises(AdapterLoadingOff, match="'closed' takes no adapters"):
            await platform.load_adapter("x", "b", deployment="closed")
        with pytest.raises(InvalidRequest, match=r"several models take adapters \(base, other\)"):
            await platform.load_adapter("x", "b")
        with pytest.raises(InvalidRequest, match="is an adapter itself; name its base, 'base'"):
            await platform.load_adapter("x", "b", deployment="a")
        with pytest.raises(WrongTask):
            await platform.load_adapter("x", "b", deployment="e")
        for taken in ("other", "a"):
            with pytest.raises(AdapterRejected, match="what another model is called"):
                await platform.load_adapter(taken, "b", deployment="other")
        with pytest.raises(AdapterRejected, match="no such directory"):
            await platform.load_adapter("x", str(tiny_llama_dir), deployment="other")
        with pytest.raises(AdapterNotFound):
            await platform.drop_adapter("x")
        with pytest.raises(WrongTask, match="does not embed"):
            platform.encoder("a")
        assert await answer(platform, "a") == expected["a"]
