"""Runs in the peer's environment: OpenVINO GenAI behind the smallest HTTP server that streams.

    python openvino_server.py --model FILE.gguf --port PORT --threads N

The pipeline has no server of its own. This one spends as little as Python can: between two steps
the event loop reads requests and writes the step's tokens, token texts come from a table, and there
is no web framework. A thread for the steps would only delay the writing, for a step holds Python's
lock. It takes what the load generator sends and no more.
"""

import argparse
import asyncio
import codecs
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino
from openvino_genai import (
    ContinuousBatchingPipeline,
    GenerationConfig,
    SchedulerConfig,
    Tokenizer,
)

CACHE_GIB = 1
_FINISH_REASONS = {"STOP": "stop", "LENGTH": "length"}
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_HEALTH = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def make_pipeline(model: str, *, threads: int) -> ContinuousBatchingPipeline:
    """Load a GGUF file as it is, 4-bit weights included."""
    scheduler = SchedulerConfig()
    scheduler.cache_size = CACHE_GIB
    scheduler.enable_prefix_caching = True
    return ContinuousBatchingPipeline(model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})


def greedy(max_tokens: int) -> GenerationConfig:
    """Return the configuration of an answer of exactly so many tokens."""
    config = GenerationConfig()
    config.max_new_tokens = max_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


def prompt_ids(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> Any:
    """Return the tokens of a conversation under the model's chat template."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False).input_ids


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of every token; special ones, such as `<|im_end|>`, have none."""
    vocabulary = {_bytes(token): number for token, number in tokenizer.get_vocab().items()}
    texts = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if not (token.startswith(b"<") and token.endswith(b">") and len(token) > 2):
            texts[number] = token
    return texts


def _bytes(token: str | bytes) -> bytes:
    return token.encode() if isinstance(token, str) else token


@dataclass(slots=True)
class Answer:
    """One answer under way."""

    connection: "Connection"
    input_ids: Any
    max_tokens: int
    handle: Any = None
    num_tokens: int = 0
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))


class Stepper:
    """Owns the pipeline: adds what waits, steps, hands each connection its token."""

    def __init__(self, pipeline: ContinuousBatchingPipeline) -> None:
        self._pipeline = pipeline
        self._texts = token_texts(pipeline.get_tokenizer())
        self._waiting: deque[Answer] = deque()
        self._arrived = asyncio.Event()
        self._num_added = 0

    def add(self, answer: Answer) -> None:
        """Let an answer begin with the next step."""
        self._waiting.append(answer)
        self._arrived.set()

    async def run(self) -> None:
        """Step for ever; sleeps while there is nothing to answer."""
        running: list[Answer] = []
        while True:
            if not running:
                await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                running.append(self._begin(self._waiting.popleft()))
            self._pipeline.step()
            running = [answer for answer in running if not self._has_ended(answer)]
            # The first turn of the loop finds the sockets that can be read, the second reads them.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _begin(self, answer: Answer) -> Answer:
        self._num_added += 1
        answer.handle = self._pipeline.add_request(
            self._num_added, answer.input_ids, greedy(answer.max_tokens)
        )
        return answer

    def _has_ended(self, answer: Answer) -> bool:
        if not answer.handle.can_read():
            return False
        (output,) = answer.handle.read().values()
        answer.num_tokens += len(output.generated_ids)
        data = b"".join(self._texts[token] for token in output.generated_ids)
        reason = _FINISH_REASONS.get(output.finish_reason.name)
        answer.connection.send(answer, answer.decoder.decode(data), reason)
        return reason is not None


class Connection(asyncio.Protocol):
    """One client: a request at a time, over a connection that is kept."""

    def __init__(self, tokenizer: Tokenizer, stepper: Stepper) -> None:
        self._tokenizer = tokenizer
        self._stepper = stepper
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(body) < length:
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._transport.write(_HEALTH)
            return
        request = json.loads(body)
        tokens = prompt_ids(self._tokenizer, request["messages"])
        self._transport.write(_HEAD)
        self._stepper.add(Answer(self, tokens, request["max_tokens"]))

    def send(self, answer: Answer, text: str, reason: str | None) -> None:
        """Write what a step brought; with a reason also the usage, and the end."""
        event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}
        if reason is not None:
            num_prompt = int(np.prod(answer.input_ids.shape))
            event["usage"] = {"prompt_tokens": num_prompt, "completion_tokens": answer.num_tokens}
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        if reason is not None:
            data += b"data: [DONE]\n\n"
        end = b"0\r\n\r\n" if reason is not None else b""
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(data), data, end))


async def serve(model: str, *, port: int, threads: int) -> None:
    """Serve until the process ends."""
    loop = asyncio.get_running_loop()
    pipeline = make_pipeline(model, threads=threads)
    tokenizer = pipeline.get_tokenizer()
    stepper = Stepper(pipeline)
    server = await loop.create_server(lambda: Connection(tokenizer, stepper), "127.0.0.1", port)
    print(f"openvino {openvino.__version__} on port {port}", flush=True)
    async with server:
        await stepper.run()


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.model, port=arguments.port, threads=arguments.threads))


if __name__ == "__main__":
    main()
