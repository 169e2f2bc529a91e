"""A rank's module: what DeepSpeed holds after one step of a small model; ``python -m held_memory out stage precision``.

Each rank writes ``out/<rank>.json``: bytes of the optimizer's tensors and of the module's parameters.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

SIZE, LAYERS = 96, 3
TRAINABLE = LAYERS * (SIZE * SIZE + SIZE)
FROZEN = SIZE * SIZE + SIZE


class Model(torch.nn.Module):
    """A frozen layer and three trained ones."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.nn.Linear(SIZE, SIZE).requires_grad_(False)
        self.adapter = torch.nn.Sequential(*(torch.nn.Linear(SIZE, SIZE) for _ in range(LAYERS)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.adapter(self.base(x)).float().square().mean()


def held(found: Any, seen: set[int]) -> int:
    """Bytes of the tensors in nested lists and dicts, each storage once; single numbers (Adam's step) are left out."""
    if isinstance(found, torch.Tensor):
        storage = found.untyped_storage()
        if found.numel() <= 1 or storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return found.numel() * found.element_size()
    if isinstance(found, dict):
        return sum(held(value, seen) for value in found.values())
    return sum(held(value, seen) for value in found) if isinstance(found, (list, tuple)) else 0


def main(out: Path, stage: int, precision: str) -> None:
    """One real step, then the sums."""
    from atelier.training.config import TrainConfig
    from atelier.training.deepspeed_config import deepspeed_config
    from atelier.training.optimizer import EmaAdamW, build_optimizer
    from atelier.training.runtime import start_ranks

    ranks = start_ranks(1)
    import deepspeed
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    ZERO_SUPPORTED_OPTIMIZERS.append(EmaAdamW)
    config = TrainConfig(
        steps=1, batch_size=2 * ranks.world, processes=ranks.world, zero_stage=stage, precision=precision,
        ema_decay=0.9, clip_norm=None,
    )  # fmt: skip
    model = Model()
    optimizer = build_optimizer([{"params": list(model.adapter.parameters())}], config)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config, TRAINABLE, on_gpu=False)
    )
    dtype = next(engine.module.parameters()).dtype
    engine.backward(engine(torch.randn(2, SIZE, dtype=dtype)))
    engine.step()

    wrapped = engine.optimizer
    weights = list(engine.module.parameters())
    seen: set[int] = {weight.untyped_storage().data_ptr() for weight in weights}
    state = held([dict(values) for values in optimizer.state.values()], seen)
    masters = held([group["params"] for group in wrapped.param_groups], seen)
    parameters = sum(weight.numel() * weight.element_size() for weight in weights)
    (out / f"{ranks.rank}.json").write_text(
        json.dumps({"optimizer": state + masters, "moments": state, "parameters": parameters,
                    "kind": type(wrapped).__name__})
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
