"""The worker process: `python -m deepseek.engine.worker`, its spec as JSON on standard input.

It connects to the platform's Unix socket, loads its models, reports `Ready` and enters the step
loop. One thread reads commands and one writes events, so that a step never waits for the socket.
It exits when the platform closes the connection: no worker outlives its platform.
"""

import logging
import os
import signal
import socket
import sys
import threading
from queue import SimpleQueue

import msgspec

from deepseek.core.errors import DeepseekError
from deepseek.core.wire import (
    FRAME_HEADER,
    Event,
    ModelInfo,
    Ready,
    WorkerSpec,
    command_decoder,
    frame,
)
from deepseek.engine.base import Engine
from deepseek.engine.device import prepare_device
from deepseek.engine.selection import failed_info, load_model
from deepseek.engine.step_loop import Inbox, StepLoop
from deepseek.scheduling.step_policies import make_step_policy

logger = logging.getLogger(__name__)


def main() -> int:
    """Run the worker; returns the process's exit status."""
    # Ctrl-C goes to the whole process group; the platform decides when its workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerSpec)
    logging.basicConfig(
        level=spec.log_level.upper(),
        format=f"%(asctime)s %(levelname)s worker {spec.pool} %(name)s: %(message)s",
    )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(spec.socket_path)
    commands: Inbox = SimpleQueue()
    events: SimpleQueue[Event | None] = SimpleQueue()
    writer = threading.Thread(target=_write, args=(connection, events), daemon=True)
    writer.start()
    threading.Thread(target=_read, args=(connection, commands), daemon=True).start()
    try:
        device = prepare_device(spec)
        policy = make_step_policy(spec.step_policy, {m.name: m.share for m in spec.models})
    except DeepseekError as error:
        logger.error("%s", error.message)
        return 2
    engines, infos = _load_models(spec, device)
    events.put(Ready(os.getpid(), infos))
    StepLoop(
        engines,
        policy,
        commands=commands,
        send=events.put,
        snapshot_interval_s=spec.snapshot_interval_s,
    ).run()
    events.put(None)
    writer.join(timeout=5)
    return 0


def _load_models(spec: WorkerSpec, device: str) -> tuple[dict[str, Engine], list[ModelInfo]]:
    """Load every model; one that cannot be loaded is reported and the others serve."""
    engines: dict[str, Engine] = {}
    infos: list[ModelInfo] = []
    for model in spec.models:
        try:
            engines[model.name], info = load_model(model, spec, device=device)
        except (DeepseekError, OSError) as error:
            logger.error("model %s cannot be loaded: %s", model.name, error)
            info = failed_info(model, error)
        infos.append(info)
    return engines, infos


def _read(connection: socket.socket, commands: Inbox) -> None:
    """Decode frames into the queue until the platform hangs up."""
    stream = connection.makefile("rb")
    try:
        while len(header := stream.read(FRAME_HEADER.size)) == FRAME_HEADER.size:
            (length,) = FRAME_HEADER.unpack(header)
            commands.put(command_decoder.decode(stream.read(length)))
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("the connection to the platform broke: %s", error)
    commands.put(None)


def _write(connection: socket.socket, events: "SimpleQueue[Event | None]") -> None:
    """Send frames until told to stop, or until the platform hangs up."""
    try:
        while (event := events.get()) is not None:
            connection.sendall(frame(event))
    except OSError as error:
        logger.warning("the platform is gone: %s", error)


if __name__ == "__main__":
    sys.exit(main())
