"""Deployments over a real worker process: answers, crashes, limits, shutdown."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from deepseek.core.errors import (
    ContextLengthExceeded,
    Draining,
    InvalidGrammar,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    RequestTimeout,
    Unavailable,
    UnsupportedParameter,
    WorkerCrashed,
    WrongTask,
)
from deepseek.core.requests import SamplingParams
from deepseek.serving.base import GenerateOptions
from deepseek.serving.platform import Platform
from deepseek.serving.replica import RestartPolicy, WorkerState
from deepseek.serving.settings import ModelSettings
from tests.serving.workers import collect, greedy_options, running_platform

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(120)]


async def until_ready(platform: Platform) -> None:
    while not platform.ready:
        await asyncio.sleep(0.02)


def worker_pid(platform: Platform) -> int:
    pid = platform.replicas[0].pid
    assert pid is not None
    return pid


async def test_models_of_one_worker_answer_side_by_side(
    tiny_llama_dir: Path, tiny_gpt2_dir: Path, tiny_bert_dir: Path
) -> None:
    models = {"a": tiny_llama_dir, "b": tiny_gpt2_dir, "e": tiny_bert_dir}
    async with running_platform(models) as platform:
        options = greedy_options(30)
        prompts = [[n + 1, n + 2, n + 3] for n in range(8)]
        alone = [await collect(platform.generator("a"), p, options) for p in prompts]
        texts = [f"sentence number {n} " + "word " * n for n in range(20)]
        vectors_alone = [(await platform.encoder("e").encode([text])).rows[0] for text in texts]
        together = await asyncio.gather(
            *(collect(platform.generator("a"), p, options) for p in prompts),
            *(collect(platform.generator("b"), p, options) for p in prompts),
        )
        encoded = await platform.encoder("e").encode(texts)
        assert together[:8] == alone
        assert all(len(tokens) == 30 for tokens, _, _ in together)
        np.testing.assert_allclose(encoded.rows, np.stack(vectors_alone), atol=2e-5)


async def test_several_answers_come_under_their_own_index(tiny_llama_dir: Path) -> None:
    async with running_platform({"a": tiny_llama_dir}) as platform:
        sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=3, ignore_eos=True)
        answers: list[dict[int, list[int]]] = []
        for _ in range(2):
            found: dict[int, list[int]] = {}
            options = GenerateOptions(sampling=sampling, n=3)
            async for delta in platform.generator("a").generate([[1, 2], [3]], options):
                found.setdefault(delta.index, []).extend(delta.token_ids)
            answers.append(found)
        assert answers[0] == answers[1]
        assert sorted(answers[0]) == [0, 1, 2, 3, 4, 5]
        assert len({tuple(tokens) for tokens in answers[0].values()}) > 3


async def test_a_stop_string_ends_the_answer_and_frees_the_slot(tiny_llama_dir: Path) -> None:
    async with running_platform({"a": tiny_llama_dir}) as platform:
        generator = platform.generator("a")
        _, text, _ = await collect(generator, [1, 2, 3], greedy_options(60))
        stop = text[10:14]
        _, cut, reason = await collect(generator, [1, 2, 3], greedy_options(60, stop=(stop,)))
        assert cut == text[: text.index(stop)]
        assert reason == "stop"
        assert platform.num_in_flight == 0


async def test_a_crash_retries_the_unseen_and_ends_the_seen(tiny_llama_dir: Path) -> None:
    async with running_platform({"a": tiny_llama_dir}) as platform:
        generator = platform.generator("a")
        expected = await collect(generator, [5, 6], greedy_options(20))
        first_pid = worker_pid(platform)
        os.kill(first_pid, signal.SIGSTOP)  # so that nothing below can be answered before the kill
        unseen = [
            asyncio.create_task(collect(generator, [5, 6], greedy_options(20))) for _ in range(4)
        ]
        os.kill(first_pid, signal.SIGCONT)
        seen = generator.generate([[9]], greedy_options(200))
        await anext(seen)
        os.kill(first_pid, signal.SIGSTOP)
        late = asyncio.create_task(collect(generator, [5, 6], greedy_options(20)))
        await asyncio.sleep(0)
        os.kill(first_pid, signal.SIGKILL)
        with pytest.raises(WorkerCrashed):
            async for _ in seen:
                pass
        assert not platform.ready
        assert await late == expected
        for task in unseen:
            try:
                assert await task == expected
            except WorkerCrashed:
                continue  # it had begun to stream before the kill
        await until_ready(platform)
        assert worker_pid(platform) != first_pid


async def test_requests_during_a_restart_are_told_to_come_back(tiny_llama_dir: Path) -> None:
    async with running_platform({"a": tiny_llama_dir}) as platform:
        os.kill(worker_pid(platform), signal.SIGKILL)
        while platform.replicas[0].state is WorkerState.READY:
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable) as caught:
            await collect(platform.generator("a"), [1], greedy_options(5))
        assert caught.value.retry_after_s > 0
        await until_ready(platform)
        tokens, _, _ = await collect(platform.generator("a"), [1], greedy_options(5))
        assert len(tokens) == 5


async def test_a_worker_that_keeps_dying_stays_down_with_a_reason(tiny_llama_dir: Path) -> None:
    policy = RestartPolicy(max_restarts=1, backoff_s=0.0)
    async with running_platform({"a": tiny_llama_dir}, policy=policy) as platform:
        replica = platform.replicas[0]
        for _ in range(2):
            await until_ready(platform)
            os.kill(worker_pid(platform), signal.SIGKILL)
            while replica.state is WorkerState.READY:
                await asyncio.sleep(0.01)
        while replica.state is not WorkerState.DOWN:
            await asyncio.sleep(0.01)
        assert "2 times in a row" in platform.statuses()[0].reason


async def test_weights_that_broke_take_down_their_model_only(
    tiny_llama_dir: Path, tiny_bert_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_llama_dir, copy)
    async with running_platform({"a": copy, "e": tiny_bert_dir}) as platform:
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        os.kill(worker_pid(platform), signal.SIGKILL)
        while platform.encoder("e").status.ready:
            await asyncio.sleep(0.01)
        while not platform.encoder("e").status.ready:
            await asyncio.sleep(0.01)
        with pytest.raises(ModelUnavailable, match="could not be loaded"):
            await collect(platform.generator("a"), [1], greedy_options(5))
        assert (await platform.encoder("e").encode(["still here"])).rows.shape[0] == 1


async def test_closing_a_stream_frees_its_slot(tiny_llama_dir: Path) -> None:
    async with running_platform({"a": tiny_llama_dir}) as platform:
        for _ in range(100):
            stream = platform.generator("a").generate([[1, 2, 3]], greedy_options(200))
            await anext(stream)
            await stream.aclose()
        assert platform.num_in_flight == 0
        snapshot = platform.replicas[0].snapshot
        while snapshot is None or snapshot.models[0].num_running:
            await asyncio.sleep(0.02)
            snapshot = platform.replicas[0].snapshot
        assert snapshot.models[0].kv_tokens_used == 0


async def test_a_full_queue_refuses_early(tiny_llama_dir: Path) -> None:
    settings = {"a": ModelSettings(source="a", max_queue=2)}
    async with running_platform({"a": tiny_llama_dir}, settings=settings) as platform:
        generator = platform.generator("a")
        running = [generator.generate([[n + 1]], greedy_options(240)) for n in range(2)]
        for stream in running:
            await anext(stream)
        with pytest.raises(Overloaded, match="its limit is 2"):
            await collect(generator, [1], greedy_options(5))
        with pytest.raises(InvalidRequest, match="max_queue"):
            await collect(generator, [1], greedy_options(5, n=3))
        for stream in running:
            await stream.aclose()
        assert len((await collect(generator, [1], greedy_options(5)))[0]) == 5


async def test_a_request_that_takes_too_long_ends(tiny_llama_dir: Path) -> None:
    settings = {"a": ModelSettings(source="a", request_timeout_s=0.01)}
    async with running_platform({"a": tiny_llama_dir}, settings=settings) as platform:
        with pytest.raises(RequestTimeout, match=r"request_timeout_s=0\.01"):
            await collect(platform.generator("a"), [1], greedy_options(240))
        assert platform.num_in_flight == 0


async def test_a_drain_finishes_what_runs_and_refuses_the_rest(tiny_llama_dir: Path) -> None:
    async with running_platform({"a": tiny_llama_dir}) as platform:
        generator = platform.generator("a")
        running = asyncio.create_task(collect(generator, [4], greedy_options(150)))
        while platform.num_in_flight == 0:
            await asyncio.sleep(0)
        stopping = asyncio.create_task(platform.stop(drain_timeout_s=60))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await collect(generator, [1], greedy_options(5))
        assert len((await running)[0]) == 150
        await stopping


async def test_what_cannot_be_served_is_refused_with_its_field(
    tiny_llama_dir: Path, tiny_bert_dir: Path
) -> None:
    async with running_platform({"a": tiny_llama_dir, "e": tiny_bert_dir}) as platform:
        generator = platform.generator("a")
        with pytest.raises(ModelNotFound, match="served: a, e") as missing:
            platform.generator("gpt-4")
        assert missing.value.param == "model"
        with pytest.raises(WrongTask, match="use one of: a"):
            platform.generator("e")
        with pytest.raises(WrongTask):
            platform.classifier("e")
        limit = generator.max_model_len
        with pytest.raises(ContextLengthExceeded, match=str(limit)):
            await collect(generator, [1] * limit, greedy_options(1))
        with pytest.raises(ContextLengthExceeded) as too_many:
            await collect(generator, [1], greedy_options(limit))
        assert too_many.value.param == "max_tokens"
        with pytest.raises(InvalidGrammar):
            generator.check_grammar('{"grammars": [{"json_schema": {"type": "cat"}}]}', param="x")
        with pytest.raises(UnsupportedParameter, match="no tools"):
            generator.render_chat(
                [{"role": "user", "content": "hi"}],
                tools=[{"type": "function", "function": {"name": "f"}}],
            )
        with pytest.raises(ContextLengthExceeded, match="truncate"):
            await platform.encoder("e").encode(["word " * 2000])
        cut = await platform.encoder("e").encode(["word " * 2000], truncate=True)
        assert cut.num_tokens == platform.encoder("e").max_model_len
