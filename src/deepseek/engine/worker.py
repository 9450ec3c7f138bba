"""The worker process: `python -m deepseek.engine.worker`, its spec on standard input.

It connects to the platform's Unix socket, loads its models, reports `Ready` and enters the step
loop. One thread reads commands and one writes events, so that a step never waits for the socket.
It exits when the platform closes the connection: no worker outlives its platform. With `--stand-by`
it imports what a model will need before it waits for its spec.
"""

import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from queue import SimpleQueue

import msgspec
import torch

from deepseek.core.errors import DeepseekError
from deepseek.core.wire import (
    FRAME_HEADER,
    REFUSED_STATUS,
    STAND_BY,
    Event,
    Ready,
    WorkerSpec,
    command_decoder,
    frame,
    spec_decoder,
)
from deepseek.engine.device import prepare_device
from deepseek.engine.selection import import_torch_engine
from deepseek.engine.starting import make_residents, start_models
from deepseek.engine.step_loop import Inbox, StepLoop
from deepseek.engine.step_record import StepRecord
from deepseek.scheduling.sharing.registry import make_step_policy
from deepseek.telemetry.sampling import DeviceSampler
from deepseek.telemetry.sensors.registry import make_sensor

logger = logging.getLogger(__name__)


def main() -> int:
    """Run the worker; returns the process's exit status."""
    # Ctrl-C goes to the whole process group; the platform decides when its workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if STAND_BY in sys.argv:
        import_torch_engine()
    described = sys.stdin.buffer.read()
    if not described:
        return 0  # it has stood by for a platform that is gone
    spec = spec_decoder.decode(described)
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
        policy = make_step_policy(
            spec.step_policy, {m.name: m.qos for m in spec.models}, max_step_s=spec.max_step_s
        )
        started = start_models(spec, device=device)
        residents = make_residents(started, spec, device=device, commands=commands, send=events.put)
    except DeepseekError as error:
        logger.error("%s", error.message)
        return REFUSED_STATUS
    events.put(Ready(os.getpid(), started.infos))
    StepLoop(
        started.hosted,
        policy,
        sensor=_started_sensor(spec, device),
        commands=commands,
        send=events.put,
        snapshot_interval_s=spec.snapshot_interval_s,
        record=StepRecord(Path(spec.step_record)) if spec.step_record else None,
        residents=residents,
    ).run()
    events.put(None)
    writer.join(timeout=5)
    return 0


def _started_sensor(spec: WorkerSpec, device: str) -> DeviceSampler:
    uuid = None
    if device.startswith("cuda"):
        # NVML counts in bus order, torch in an order of its own.
        uuid = str(torch.cuda.get_device_properties(device).uuid)
    sensor = make_sensor(device, cpus=sorted(os.sched_getaffinity(0)), uuid=uuid)
    sampler = DeviceSampler(sensor, interval_s=spec.snapshot_interval_s)
    sampler.start()
    return sampler


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
