"""The decoder engine on a GPU: graphs, steps that run ahead, adapters; the same answers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepseek.core.requests import GenerateRequest, SamplingParams, Task
from deepseek.core.wire import ModelSpec, WorkerSpec
from deepseek.engine.engines.decoder import DecoderEngine
from deepseek.engine.load_pace import LoadCancelled
from deepseek.engine.loading import load_engine
from tests import tiny_models
from tests.engine.families import greedy, run_all
from tests.engine.test_decoder import mixed_requests, vocab_size

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

WRITERS: list[Callable[[Path], Path]] = [
    tiny_models.write_llama,
    tiny_models.write_qwen2,
    tiny_models.write_qwen3,
    tiny_models.write_gpt2,
]


def engine_on(
    device: str,
    path: Path,
    *,
    kv_cache_bytes: int = 64 * 2**20,
    max_running: int = 8,
    num_models: int = 1,
    host_weights_bytes: int = 0,
) -> DecoderEngine:
    """Load as a worker does, so that engines to be compared differ in nothing but the device."""
    torch.backends.cuda.matmul.allow_tf32 = False
    model = ModelSpec(
        name="m", path=str(path), task=Task.GENERATE, dtype="float32", max_model_len=256
    )
    spec = WorkerSpec(
        pool="p",
        socket_path="",
        device=device,
        models=[model] * num_models,
        kv_cache_bytes=kv_cache_bytes * num_models,
        max_step_tokens=48,
        max_running=max_running,
        host_weights_bytes=host_weights_bytes,
    )
    engine, _ = load_engine(model, spec, device=device)
    assert isinstance(engine, DecoderEngine)
    return engine


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_answers_equal_those_of_a_cpu(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "model")
    requests = mixed_requests(vocab_size(path))
    assert run_all(engine_on("cuda", path), requests) == run_all(engine_on("cpu", path), requests)


def test_answers_end_where_a_cpu_ends_them_though_the_next_step_runs(tmp_path: Path) -> None:
    path = tiny_models.write_llama(tmp_path / "model")
    requests = mixed_requests(vocab_size(path))
    whole = run_all(engine_on("cuda", path), requests)
    stopped = [stopping_inside(request, whole[request.id]) for request in requests]
    answers = run_all(engine_on("cuda", path), stopped)
    assert answers == run_all(engine_on("cpu", path), stopped)
    assert sum(map(len, answers.values())) < sum(map(len, whole.values()))


def stopping_inside(request: GenerateRequest, answer: list[int]) -> GenerateRequest:
    """Let the request stop at the token in the middle of its answer."""
    stop = (answer[len(answer) // 2],)
    return replace(request, sampling=replace(request.sampling, stop_token_ids=stop))


def test_a_device_shared_by_models_waits_for_each_step(tmp_path: Path) -> None:
    path = tiny_models.write_llama(tmp_path / "model")
    requests = mixed_requests(vocab_size(path), 6)
    shared = run_all(engine_on("cuda", path, num_models=2), requests)
    assert shared == run_all(engine_on("cuda", path), requests)


def test_memory_pressure_changes_no_answer(tmp_path: Path) -> None:
    path = tiny_models.write_llama(tmp_path / "model")
    requests = [greedy(n, [n + 1] * 20, 100) for n in range(6)]
    engine = engine_on("cuda", path, kv_cache_bytes=260 * 2 * 2 * 2 * 16 * 4)
    assert run_all(engine, requests) == run_all(engine_on("cpu", path), requests)
    assert engine.load().num_preemptions > 0
    assert engine.load().kv_tokens_used == 0


def test_sampled_answers_repeat_and_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    path = tiny_models.write_llama(tmp_path / "model")
    requests = [
        GenerateRequest(
            id=n,
            model="m",
            prompt_token_ids=[n + 3, 4, 5],
            sampling=SamplingParams(
                max_tokens=20,
                seed=n,
                temperature=0.7,
                top_p=(1.0, 0.9, 0.8)[n % 3],
                top_k=(0, 20)[n % 2],
                presence_penalty=0.3 * (n % 4 == 3),
            ),
        )
        for n in range(8)
    ]
    together = run_all(engine_on("cuda", path), requests)
    engine = engine_on("cuda", path)
    alone = {request.id: run_all(engine, [request])[request.id] for request in requests}
    assert together == alone


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_model_that_left_the_device_comes_back_as_it_was(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "model")
    requests = mixed_requests(vocab_size(path))
    expected = run_all(engine_on("cuda", path), requests)
    engine = engine_on("cuda", path, host_weights_bytes=2**30)
    assert engine.can_park
    assert run_all(engine, requests) == expected, "graphs hold the new addresses"
    free = torch.cuda.mem_get_info()[0]
    engine.park()
    assert torch.cuda.mem_get_info()[0] >= free + 64 * 2**20, "attention state at the least"
    # Somebody else has the memory meanwhile, and leaves other things in it.
    torch.full((48 * 2**20,), 3.4e38, device="cuda")
    torch.cuda.empty_cache()
    engine.wake()
    assert run_all(engine, requests) == expected
    assert engine.load().kv_tokens_used == 0
    engine.park()
    with pytest.raises(RuntimeError, match="is parked"):
        engine.step()
    engine.close()


def test_weights_move_into_their_arena_without_taking_memory_twice(tmp_path: Path) -> None:
    path = tiny_models.write_llama(
        tmp_path / "model",
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    engine_on("cuda", path).close()  # kernels, libraries and their workspaces stay
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    engine = engine_on("cuda", path, host_weights_bytes=2**31)
    taken = before - torch.cuda.mem_get_info()[0]
    engine.park()
    weights = torch.cuda.mem_get_info()[0] - (before - taken) - 64 * 2**20
    assert taken < weights + 64 * 2**20 + 256 * 2**20
    engine.close()


def test_a_wake_that_is_ended_leaves_the_model_parked_and_its_memory_free(tmp_path: Path) -> None:
    path = tiny_models.write_llama(tmp_path / "model")
    requests = mixed_requests(vocab_size(path))
    engine = engine_on("cuda", path, host_weights_bytes=2**30)
    expected = run_all(engine, requests)
    engine.park()
    free = torch.cuda.mem_get_info()[0]

    def ended(num_bytes: int) -> None:
        raise LoadCancelled

    with pytest.raises(LoadCancelled):
        engine.wake(ended)
    assert torch.cuda.mem_get_info()[0] >= free
    engine.wake()
    assert run_all(engine, requests) == expected
    engine.close()


def test_a_model_without_its_host_copy_stays_as_it_is(tmp_path: Path) -> None:
    path = tiny_models.write_llama(tmp_path / "model")
    requests = mixed_requests(vocab_size(path))
    engine = engine_on("cuda", path, host_weights_bytes=2**30)
    expected = run_all(engine, requests)
    engine.drop_host_copy()
    assert not engine.can_park
    assert run_all(engine, requests) == expected
    engine.close()


def test_a_model_with_work_does_not_leave_the_device(tmp_path: Path) -> None:
    path = tiny_models.write_llama(tmp_path / "model")
    engine = engine_on("cuda", path, host_weights_bytes=2**30)
    engine.add(greedy(1, [5] * 20, 4))
    with pytest.raises(RuntimeError, match="has work"):
        engine.park()
