"""The four public traces, shortened to what a small model on one core serves at a sane rate.

A prompt token takes such a core 0.8 ms. Prompts are divided so that 999 of 1000 have less than 512
tokens, which alone take 0.4 s: the time to the first token that is promised leaves room for others.
Answers are divided to 14 to 37 tokens on average, so that neither part is all of the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from frame import SHARED_DATA
from serving_measures.platform import MeasurementFailed

from deepseek.cli.load.traces import TraceRow, read_trace
from deepseek.core.qos import QoS
from deepseek.scheduling.simulation.requests import Arrival
from deepseek.scheduling.simulation.simulator import ModelSetup
from deepseek.scheduling.simulation.step_times import StepTimes

TTFT_S, ITL_S = 1.0, 0.1
"""The promises, the same for every trace, load and policy: an answer that begins within a second
and is written faster than people read (10 tokens/s)."""
MAX_WAIT_S = 0.2
_LEAST_PROMPT_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One trace and what its lengths are divided by."""

    name: str
    file: str
    input_divisor: int
    output_divisor: int

    def rows(self, *, skip: int = 0, count: int | None = None) -> list[TraceRow]:
        """Return so many rows after the first `skip`, shortened, the first one at zero."""
        path = _traces() / self.file
        rows = read_trace(path, max_rows=None if count is None else skip + count)[skip:]
        return [
            replace(
                row,
                arrival_s=row.arrival_s - rows[0].arrival_s,
                input_tokens=max(_LEAST_PROMPT_TOKENS, row.input_tokens // self.input_divisor),
                output_tokens=max(1, row.output_tokens // self.output_divisor),
                prefix_blocks=(),
            )
            for row in rows
        ]


AZURE_CONVERSATION = Trace(
    name="azure conversation",
    file="AzureLLMInferenceTrace_conv.csv",
    input_divisor=16,
    output_divisor=8,
)
AZURE_CODE = Trace(
    name="azure code", file="AzureLLMInferenceTrace_code.csv", input_divisor=16, output_divisor=2
)
MOONCAKE_CONVERSATION = Trace(
    name="mooncake conversation",
    file="mooncake_conversation.jsonl",
    input_divisor=256,
    output_divisor=12,
)
MOONCAKE_SYNTHETIC = Trace(
    name="mooncake synthetic",
    file="mooncake_synthetic.jsonl",
    input_divisor=256,
    output_divisor=4,
)
TRACES = (AZURE_CONVERSATION, AZURE_CODE, MOONCAKE_CONVERSATION, MOONCAKE_SYNTHETIC)


def arrivals_of(rows: Sequence[TraceRow]) -> list[Arrival]:
    """Return the rows as the simulator takes them."""
    return [
        Arrival(at_s=row.arrival_s, prompt_tokens=row.input_tokens, output_tokens=row.output_tokens)
        for row in rows
    ]


def setup_of(arrivals: Sequence[Arrival], *, qos: QoS, times: StepTimes) -> ModelSetup:
    """Return the model of all simulations: the engine's defaults on a processor."""
    return ModelSetup(name="chat", qos=qos, arrivals=arrivals, times=times)


def promised(policy: str, *, batch: int | None = None, wait_s: float = 0.0) -> QoS:
    """Return a policy's settings under the promises of every measure."""
    return QoS(
        policy=policy,
        min_batch_size=batch or 1,
        max_batch_size=batch,
        max_wait_s=wait_s,
        ttft_s=TTFT_S,
        itl_s=ITL_S,
    )


OURS, GREEDY, AIMD = "slack", "greedy", "aimd"
FIXED_BATCHES = (4, 8, 16, 32)
FIXED_WAITS_S = (0.02, 0.1, 0.2)


def fixed_name(batch: int, wait_s: float) -> str:
    """Return the name of a fixed pair: `fixed 16, 100 ms`."""
    return f"fixed {batch}, {wait_s * 1000:.0f} ms"


POLICIES: dict[str, QoS] = {
    OURS: promised("slack", wait_s=MAX_WAIT_S),
    GREEDY: promised("greedy"),
    AIMD: promised("aimd"),
    **{
        fixed_name(batch, wait_s): promised("fixed", batch=batch, wait_s=wait_s)
        for batch in FIXED_BATCHES
        for wait_s in FIXED_WAITS_S
    },
}
FIXED = tuple(name for name, qos in POLICIES.items() if qos.policy == "fixed")


def _traces() -> Path:
    path = SHARED_DATA / "traces"
    if not path.is_dir():
        raise MeasurementFailed(f"{path} is not there: the public traces are needed")
    return path
