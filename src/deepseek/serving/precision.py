"""Which precision each request of one served model gets, and what its load has to do with it.

The choice is made here, before a request is sent to the worker: all answers of a request share it,
it stays the same when the request is sent again after a crash, and the answer's headers tell it.
"""

import time

from deepseek.core.decisions import Decision
from deepseek.core.errors import UnsupportedParameter
from deepseek.core.load import ModelLoad
from deepseek.core.precision import Precision
from deepseek.scheduling.precision.policy import PrecisionChoice, PrecisionPolicy, RequestKind
from deepseek.scheduling.precision.shedding import LoadShedding
from deepseek.serving.precision_settings import PrecisionSettings
from deepseek.serving.settings import ModelSettings

_PLAIN_TIERS = (None, "auto", "default")
"""Classes that ask for nothing."""


class ServedPrecision:
    """One model's choice; lives in the platform's event loop."""

    def __init__(self, model: str, settings: ModelSettings) -> None:
        self._model = model
        self._weights = settings.quantization or "the number format of its dtype"
        self._policy: PrecisionPolicy | None = None
        """None: the model has one precision."""
        self._shedding: LoadShedding | None = None
        self.reconfigure(settings)

    def reconfigure(self, settings: ModelSettings) -> None:
        """Choose by other settings; load that is being shed is shed on, where any is still to be.

        What the model has, its weights, must be as before.
        """
        given = settings.precision or PrecisionSettings()
        self._policy = given.to_policy() if settings.quantization == "nested" else None
        if given.shedding is None:
            self._shedding = None
        elif self._shedding is None:
            self._shedding = LoadShedding(self._model, given.shedding.to_limits())
        else:
            self._shedding.limits = given.shedding.to_limits()

    def choose(
        self, kind: RequestKind, *, named: Precision | None, floor: Precision | None = None
    ) -> PrecisionChoice | None:
        """Return what to compute a request in; None where the model has one precision only.

        `floor`: the least that whoever asks is to get. Raises `UnsupportedParameter` (param
        `precision` or `service_tier`) for what the model does not have.
        """
        self._check_tier(kind.service_tier)
        if self._policy is None:
            if named is not None:
                raise UnsupportedParameter(
                    f"precision: model {self._model!r} has its weights in {self._weights} only; "
                    "leave it out (models.NAME.quantization: nested gives a choice)",
                    param="precision",
                )
            return None
        is_shedding = self._shedding is not None and self._shedding.is_active
        choice = self._policy.choose(kind, named=named, is_shedding=is_shedding, floor=floor)
        if choice is None:
            raise UnsupportedParameter(
                f"precision: {str(named)!r} is less than what requests get from model "
                f"{self._model!r} at least (models.NAME.precision.minimum); ask for 'int8', or "
                "leave it out",
                param="precision",
            )
        return choice

    def adjust(self, load: ModelLoad) -> list[Decision]:
        """Take a load report that has just come; return what changed."""
        if self._shedding is None:
            return []
        return self._shedding.adjust(load, now_s=time.monotonic())

    def _check_tier(self, tier: str | None) -> None:
        known = frozenset() if self._policy is None else self._policy.service_tiers
        if tier not in _PLAIN_TIERS and tier not in known:
            raise UnsupportedParameter(
                f"service_tier: model {self._model!r} serves {tier!r} no otherwise than others; "
                "leave it out (models.NAME.precision.rules may name it)",
                param="service_tier",
            )
