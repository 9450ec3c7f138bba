"""LoRA adapters as PEFT makes and runs them: the reference for ours."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def write_adapter(base: Path, path: Path, *, seed: int, **config: Any) -> Path:
    """Save an adapter with random matrices, strong enough to change greedy answers."""
    model = _model(base)
    given: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **config}
    is_transposed = model.config.model_type == "gpt2"
    model = get_peft_model(
        model, LoraConfig(**given, task_type="CAUSAL_LM", fan_in_fan_out=is_transposed)
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(path)
    return path


def greedy_answer(base: Path, adapter: Path | None, prompt: list[int], count: int) -> list[int]:
    """Return what transformers with PEFT answers, exactly `count` tokens."""
    model = _model(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=count,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer


def _model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
