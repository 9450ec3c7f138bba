"""The frame of a conversion subprocess: progress and errors as JSON lines on standard output."""

import os
import sys
from collections.abc import Callable

from deepseek.core.errors import DeepseekError
from deepseek.weights.progress import JsonLinesProgress, Progress


def run_child(work: Callable[[Progress], None]) -> int:
    """Run `work`, report its progress and its error; returns the exit code.

    Anything else that libraries print goes to standard error, so that it cannot break a line.
    """
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    progress = JsonLinesProgress(stream)
    try:
        work(progress)
    except DeepseekError as error:
        progress.fail(error.code, error.message)
        return 1
    return 0
