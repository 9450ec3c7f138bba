"""An engine in this process, stepped as a worker steps it."""

import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepseek.core.requests import GenerateRequest, SamplingParams, Task
from deepseek.core.wire import ModelSpec, TokenDelta, WorkerSpec
from deepseek.engine.base import Engine
from deepseek.engine.loading import load_engine

VOCAB = 128000


class Session:
    """One engine and the clock."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids = itertools.count()
        self._random = random.Random(7)  # noqa: S311 - reproducible prompts

    def request(self, *, input_tokens: int, output_tokens: int) -> GenerateRequest:
        """Return a request with a prompt that shares nothing with others."""
        prompt = [self._random.randrange(2, VOCAB) for _ in range(input_tokens)]
        sampling = SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        return GenerateRequest(
            id=next(self._ids), model="m", prompt_token_ids=prompt, sampling=sampling
        )

    def add(self, *, input_tokens: int, output_tokens: int) -> None:
        """Queue such a request."""
        self.engine.add(self.request(input_tokens=input_tokens, output_tokens=output_tokens))

    def generate(self, *, num_requests: int, input_tokens: int, output_tokens: int) -> float:
        """Run requests that are all there from the start; return output tokens a second."""
        for _ in range(num_requests):
            self.add(input_tokens=input_tokens, output_tokens=output_tokens)
        start = time.perf_counter()
        tokens = sum(count for _, count in self._steps())
        elapsed = time.perf_counter() - start
        if tokens != num_requests * output_tokens:
            raise AssertionError(f"{tokens} tokens instead of {num_requests * output_tokens}")
        return tokens / elapsed

    def stream(self, *, input_tokens: int, output_tokens: int) -> list[float]:
        """Run one request; return the seconds between its tokens."""
        self.add(input_tokens=input_tokens, output_tokens=output_tokens)
        times = [when for when, count in self._steps() if count]
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    def first_token(self, *, input_tokens: int) -> float:
        """Return the seconds from adding a prompt to its first token."""
        request = self.request(input_tokens=input_tokens, output_tokens=1)
        start = time.perf_counter()
        self.engine.add(request)
        return next(when for when, count in list(self._steps()) if count) - start

    def fill(self, *, num_sequences: int, input_tokens: int, output_tokens: int) -> None:
        """Bring sequences to where all of them decode."""
        for _ in range(num_sequences):
            self.add(input_tokens=input_tokens, output_tokens=output_tokens)
        begun: set[int] = set()
        while len(begun) < num_sequences:
            begun.update(o.id for o in self.engine.step() if isinstance(o, TokenDelta))
        for _ in range(8):
            self.engine.step()

    def drain(self) -> None:
        """Run what is left to its end."""
        for _ in self._steps():
            pass

    def abort_all(self) -> None:
        """Drop every request."""
        for request_id in range(next(self._ids)):
            self.engine.abort(request_id)
        self.drain()

    def _steps(self) -> Iterator[tuple[float, int]]:
        while self.engine.has_work:
            outputs = self.engine.step()
            count = sum(len(o.token_ids) for o in outputs if isinstance(o, TokenDelta))
            yield time.perf_counter(), count


@contextmanager
def open_session(
    directory: Path,
    *,
    dtype: str = "bfloat16",
    max_running: int = 256,
    max_len: int = 16384,
    kv_cache_bytes: int | None = None,
    host_weights_bytes: int = 0,
) -> Iterator[Session]:
    """Load a model directory on the GPU as a worker would."""
    model = ModelSpec(
        name="m", path=str(directory), task=Task.GENERATE, dtype=dtype, max_model_len=max_len
    )
    spec = WorkerSpec(
        pool="gpu",
        socket_path="",
        device="cuda",
        models=[model],
        kv_cache_bytes=kv_cache_bytes,
        host_weights_bytes=host_weights_bytes,
        max_step_tokens=8192,
        max_running=max_running,
    )
    engine, _ = load_engine(model, spec, device="cuda")
    try:
        yield Session(engine)
    finally:
        engine.close()
