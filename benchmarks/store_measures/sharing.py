"""What importing costs, and what a fine-tune costs beside the model that it was made of."""

import time
from pathlib import Path

from frame import Row, bound, fact
from safetensors.torch import load_file, save_file
from serving_measures.platform import Run

from deepseek.weights.store.chunk_store import ChunkStore
from store_measures.weights import into_store, real_model

_TUNED = ".self_attn.q_proj."


def sharing(run: Run) -> list[Row]:
    """Import the real model, the same again, and one whose query projections differ."""
    weights = real_model()
    store = ChunkStore(run.work / "sharing" / "chunks")
    num_bytes = weights.stat().st_size
    rows = []
    for name, file in {
        "a model": weights,
        "the same again": weights,
        "a fine-tune of its query projections": _tuned(weights, run.work / "sharing" / "tuned"),
    }.items():
        before = _pack_bytes(store)
        start_s = time.perf_counter()
        into_store(file, store, run.work / "sharing" / "models" / name)
        elapsed_s = time.perf_counter() - start_s
        taken = (_pack_bytes(store) - before) / num_bytes
        rows.append(fact(f"import of {name} (GB/s)", num_bytes / elapsed_s / 1e9))
        most = {"a model": 1.01, "the same again": 0.0}.get(name)
        rows.append(bound(f"import of {name}: room taken, of its size", taken, at_most=most))
    return rows


def _tuned(weights: Path, directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_bytes((weights.parent / "config.json").read_bytes())
    tensors = load_file(weights)
    changed = {name: value + 1 if _TUNED in name else value for name, value in tensors.items()}
    save_file(changed, directory / "model.safetensors")
    return directory / "model.safetensors"


def _pack_bytes(store: ChunkStore) -> int:
    return sum(512 * file.stat().st_blocks for file in (store.root / "packs").glob("*.pack"))
