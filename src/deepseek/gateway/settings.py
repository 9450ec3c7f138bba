"""Settings of the HTTP edge (section `gateway` of the file)."""

import ipaddress

from pydantic import Field

from deepseek.core.settings import DurationSeconds, Settings, SizeBytes


class GatewaySettings(Settings):
    """Where the edge listens and what it refuses."""

    host: str = "127.0.0.1"
    """Address to listen on; default 127.0.0.1 (this machine only)."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port; 0 takes a free one. Default 8000; `--port` overrides it."""
    max_body_bytes: SizeBytes = Field(default=8 * 1024**2, ge=1024)
    """Largest request body; a larger one is refused with 413 before it is read. Default 8MiB."""
    max_batch_inputs: int = Field(default=2048, ge=1)
    """Inputs of one embeddings, classify or rerank request, and prompts of one completion;
    default 2048."""
    max_n: int = Field(default=16, ge=1)
    """Largest `n`, answers per request; default 16."""
    drain_timeout_s: DurationSeconds = Field(default=30.0, ge=0)
    """Seconds that running requests get to finish at shutdown; default 30."""
    body_timeout_s: DurationSeconds = Field(default=30.0, gt=0)
    """Seconds a client may take to send its body, then 408; default 30."""
    admin: bool | None = None
    """Whether the routes under `/admin` are there, which change what is served and ask for no key.
    Default: only where `host` is a loopback address, which other machines do not reach."""

    @property
    def is_administered(self) -> bool:
        """Whether the routes under `/admin` are there."""
        return is_loopback(self.host) if self.admin is None else self.admin


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, which others may resolve as they like
