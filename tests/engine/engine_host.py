"""An engine in a process of its own, under any interpreter; serves `tests.engine.hosted`.

`PYTHON engine_host.py ADDRESS`, with `deepseek` on PYTHONPATH. Loads one model as a worker does,
then calls the engine's methods one by one and answers with what they return or raise.
"""

import logging
import sys
from multiprocessing.connection import Client
from typing import Any

from deepseek.core.errors import DeepseekError
from deepseek.core.wire import WorkerSpec
from deepseek.engine.device import prepare_device
from deepseek.engine.selection import load_model


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    with Client(sys.argv[1]) as connection:
        spec: WorkerSpec = connection.recv()
        try:
            engine, info = load_model(spec.models[0], spec, device=prepare_device(spec))
        except DeepseekError as error:
            connection.send((error, None))
            return
        connection.send((None, info))
        while True:
            try:
                name, arguments = connection.recv()
            except EOFError:
                return
            connection.send(_call(engine, name, arguments))


def _call(engine: Any, name: str, arguments: tuple[Any, ...]) -> tuple[Exception | None, Any]:
    if name == "break_next_step":
        _break_next_step(engine)
        return None, None
    try:
        value = getattr(engine, name)
        return None, value(*arguments) if callable(value) else value
    except (DeepseekError, RuntimeError) as error:
        return error, None


def _break_next_step(engine: Any) -> None:
    """Make vLLM's executor fail once, as it does when memory runs out in the middle of a step."""
    executor = engine._llm.engine_core.engine_core.model_executor
    execute = executor.execute_model

    def fail(*_: Any, **__: Any) -> None:
        executor.execute_model = execute
        raise RuntimeError("out of memory")

    executor.execute_model = fail


if __name__ == "__main__":
    main()
