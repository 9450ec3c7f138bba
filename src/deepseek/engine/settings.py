"""Settings of a device pool and of the worker that runs it (section `pools` of the file)."""

from pydantic import Field

from deepseek.core.settings import DurationSeconds, Settings, SizeBytes


class PoolSettings(Settings):
    """One device and the worker process that owns it; the models that name the pool share it."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`cpu`, `cuda`, `cuda:N`, or `auto` (default): the first GPU if there is one, else the CPU."""
    python: str | None = Field(default=None, min_length=1)
    """Path of the Python interpreter in whose environment the worker runs, relative to the
    deployment file; default: the platform's own. vLLM, which pins its own torch, lives in such an
    environment."""
    num_threads: int | None = Field(default=None, ge=1, le=1024)
    """Compute threads on a CPU; default: one per core the process may use."""
    kv_cache_bytes: SizeBytes = Field(default=2 * 1024**3, ge=1024**2)
    """Memory for attention state of the pool's language models together, split by `share`; default
    2GiB. Physical memory is taken as contexts grow, never more than this."""
    max_step_tokens: int = Field(default=512, ge=16, le=65536)
    """Tokens one engine step may process; long prompts are cut into chunks of this size so that
    running streams keep their pace. Default 512."""
    max_running: int = Field(default=64, ge=1, le=1024)
    """Generations one model runs at once; more wait in its queue. Default 64."""
    step_policy: str = "fair-share"
    """Which model steps next: `fair-share` (default; device time in proportion to `share`) or
    `round-robin`, or a name from the entry-point group `deepseek.step_policies`."""
    start_timeout_s: DurationSeconds = Field(default=600.0, gt=0)
    """Seconds a worker may take to load its models before it is killed and started again;
    default 600."""
    max_restarts: int = Field(default=5, ge=0)
    """Consecutive crashes without a served request in between after which a pool stays down;
    default 5."""
    restart_backoff_s: DurationSeconds = Field(default=0.5, ge=0)
    """Seconds before the second restart; doubles with each further crash, at most 30. The first
    restart is immediate. Default 0.5."""
    snapshot_interval_s: DurationSeconds = Field(default=0.5, gt=0)
    """Seconds between two load reports of the worker; default 0.5."""
