"""Runs in the peer's environment: llama.cpp's own HTTP server, from the xllamacpp wheel.

python llama_cpp_server.py --model FILE.gguf --port PORT --threads N --parallel SLOTS
"""

import argparse
import signal

import xllamacpp

CONTEXT_PER_SLOT = 512
"""Tokens; the requests of the benchmark need 54 + 96."""


def main() -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    arguments = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.hostnames = ["127.0.0.1"]
    params.port = arguments.port
    params.n_parallel = arguments.parallel
    params.n_ctx = CONTEXT_PER_SLOT * arguments.parallel
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
