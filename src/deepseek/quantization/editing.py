"""Changes to a model in memory that can all be taken back: what is refused leaves no trace."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

SIXTEEN_BITS = torch.bfloat16
"""What fp16 means here: CPUs only emulate float16, and the nested layers take bfloat16."""


class ModelEdit:
    """Replaces modules and converts parameters, and remembers what was there before."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._modules: dict[str, nn.Module] = {}
        self._tensors: list[tuple[nn.Parameter, torch.Tensor]] = []
        self._dtype = model.config.dtype

    def replace(self, name: str, module: nn.Module) -> None:
        """Put `module` in the place of the module called `name`."""
        self._modules.setdefault(name, self.model.get_submodule(name))
        self.model.set_submodule(name, module)

    def original(self, name: str) -> nn.Module:
        """Return the module that had the name first."""
        return self._modules.get(name) or self.model.get_submodule(name)

    def convert_to_16_bits(self) -> None:
        """Convert the parameters, but for those that the model's authors keep in float32.

        Buffers stay: rotary frequencies lose more in 16 bits than layers do.
        """
        for name, parameter in self.model.named_parameters():
            if parameter.dtype in (torch.float32, torch.float16) and not _stays_float32(
                self.model, name
            ):
                self._tensors.append((parameter, parameter.data))
                parameter.data = parameter.data.to(SIXTEEN_BITS)
        self.model.config.dtype = SIXTEEN_BITS

    def take_back(self) -> None:
        """Leave the model as it was."""
        for name, module in self._modules.items():
            self.model.set_submodule(name, module)
        for parameter, data in self._tensors:
            parameter.data = data
        self.model.config.dtype = self._dtype


@contextmanager
def editing(model: PreTrainedModel) -> Iterator[ModelEdit]:
    """Yield the edit of a model in evaluation mode; any error takes it back."""
    edit = ModelEdit(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield edit
    except BaseException:
        edit.take_back()
        raise
    finally:
        model.train(modes[0][1])  # what is new follows the model as a whole
        for module, was_training in modes:
            module.training = was_training


def resident_bytes(model: nn.Module) -> int:
    """Return the memory of all parameters and buffers; shared memory counts once."""
    storages = (tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers()))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _stays_float32(model: PreTrainedModel, name: str) -> bool:
    patterns = model._keep_in_fp32_modules_strict or ()
    return any(re.search(rf"(^|\.){pattern}(\.|$)", name) for pattern in patterns)
