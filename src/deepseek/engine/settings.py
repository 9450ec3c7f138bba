"""Settings of a device pool and of the worker that runs it (section `pools` of the file)."""

from pydantic import Field

from deepseek.core.settings import DurationSeconds, OptionalSizeBytes, Settings, SizeBytes


class PoolSettings(Settings):
    """One device and the worker process that owns it; the models that name the pool share it."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """`cpu`, `cuda`, `cuda:N`, or `auto` (default): the first GPU if there is one, else the CPU."""
    python: str | None = Field(default=None, min_length=1)
    """Path of the Python interpreter in whose environment the worker runs, relative to the
    deployment file; default: the platform's own. vLLM, which pins its own torch, lives in such an
    environment."""
    cpus: str | None = Field(default=None, pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$")
    """Processors the worker is pinned to, as `taskset` writes them (`0-3,8`); default: those that
    the platform's own process may use."""
    num_threads: int | None = Field(default=None, ge=1, le=1024)
    """Compute threads on a CPU; default: one per core the process may use."""
    kv_cache_bytes: OptionalSizeBytes = Field(default=None, ge=1024**2)
    """Memory for attention state of the pool's language models together, split by `share`. Default
    on a CPU: 2GiB; physical memory is taken as contexts grow, never more than this. Default on
    a GPU: what `memory_utilization` leaves after the weights and a run of the largest step."""
    memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Part of a GPU's memory that the pool may take in all, where `kv_cache_bytes` is not set;
    default 0.9."""
    weights_bytes: OptionalSizeBytes = Field(default=None, ge=1024**2)
    """Memory for the weights of the pool's loaded models together, as they are kept for computing;
    default: no bound. Where models may be absent (`min_resident: 0`), one that is asked for takes
    the place of others that are worth less."""
    prepared_bytes: SizeBytes = Field(default=8 * 1024**3, ge=0)
    """Disk space for the weights of CPU pools as their layers compute with them: a model that may
    be absent (`min_resident: 0`) is written there once, and mapped when it is loaded again. The
    least recently used go first; 0: none are written or used. Default 8GiB."""
    host_weights_bytes: SizeBytes = Field(default=0, ge=0)
    """Pinned memory of the host beside a GPU for copies of weights: a model that has left the GPU
    comes back from it in a fraction of a second. Default 0: models come back from their files."""
    preload_bytes_per_s: SizeBytes = Field(default=0, ge=0)
    """Rate at which weights are loaded ahead of requests while the device is idle; default 0:
    models are loaded when they are asked for."""
    preloading: str = "foreseen"
    """What decides which models are loaded ahead and which make room: `foreseen` (default; by how
    likely each is asked for next), `gdsf`, `gdsf-foreseen`, `lru`, `lru-foreseen`, or a name from
    the entry-point group `deepseek.preloading_policies`."""
    max_step_tokens: int | None = Field(default=None, ge=16, le=65536)
    """Tokens one engine step may process; long prompts are cut into chunks of this size so that
    running streams keep their pace. Default on a CPU: 128, and 512
    for encoders; on a GPU: 8192."""
    max_running: int | None = Field(default=None, ge=1, le=1024)
    """Generations one model runs at once; more wait in its queue. Default 64 on a CPU, 256 on a
    GPU."""
    step_policy: str = "fair-share"
    """Which model steps next: `fair-share` (default; device time by reservation, then in proportion
    to `share`) or `round-robin`, or a name from the entry-point group `deepseek.step_policies`."""
    max_step_time: DurationSeconds = Field(default=0.01, gt=0)
    """Longest step of a model beside one that has a reservation, which has to wait for its end: its
    prompts are cut into chunks that fit. Default 10ms."""
    step_record: str | None = Field(default=None, min_length=1)
    """File, relative to the deployment file, that the worker appends a line of JSON per step to:
    what it held and took, for fitting the simulator. Default: none."""
    decision_record: str | None = Field(default=None, min_length=1)
    """File, relative to the deployment file, for what the batching policies of the pool saw and
    decided, as `deepseek why --replay` reads it; begun anew with each worker, the one before is
    kept with `.1` after its name. Default: none."""
    decision_record_bytes: SizeBytes = Field(default=256 * 1024**2, ge=1024**2)
    """Size at which a decision record ends, for a replay needs its beginning; default 256MiB."""
    start_timeout_s: DurationSeconds = Field(default=600.0, gt=0)
    """Seconds a worker may take to load its models before it is killed and started again;
    default 600."""
    max_restarts: int = Field(default=5, ge=0)
    """Consecutive crashes without a served request in between after which a pool stays down;
    default 5."""
    restart_backoff_s: DurationSeconds = Field(default=0.5, ge=0)
    """Seconds before the second restart; doubles with each further crash, at most 30. The first
    restart is immediate. Default 0.5."""
    standby_worker: bool = False
    """Whether a process that has imported its libraries stands by to follow the worker, should it
    die: the pool is back seconds earlier, for some 300 MB of memory. Default false."""
    snapshot_interval_s: DurationSeconds = Field(default=0.5, gt=0)
    """Seconds between two load reports of the worker; default 0.5."""
