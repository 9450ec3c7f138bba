"""Where a model is: what the worker decides and the platform shows."""

from enum import StrEnum


class Residency(StrEnum):
    """Where a model of a pool is in its life."""

    DISK = "disk"
    """Only its directory: a request begins its load, and waits for it."""
    HOST = "host"
    """Left the GPU for the host's memory: a request brings it back in a fraction of a second."""
    LOADING = "loading"
    """On its way into memory, or from the host's to the GPU's."""
    READY = "ready"
    """Its weights are prepared for the device, and it answers."""
    FAILED = "failed"
    """Its last load failed."""
