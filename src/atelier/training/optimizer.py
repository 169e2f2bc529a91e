"""AdamW whose state can carry the weights' exponential moving average."""

from collections.abc import Iterable
from typing import Any

import torch

from atelier.training.config import TrainConfig


class EmaAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter, 2019) that keeps an EMA of what it updates as a third moment, ``"ema"``.

    DeepSpeed hands the optimizer flat fp32 shards of the weights. An EMA kept here is therefore of the fp32 masters,
    sharded as they are, saved and resumed with the optimizer's other state, and skipped when fp16 skips a step.

    Args:
        ema_decay: None keeps no EMA. The decay warms up as (1 + t)/(10 + t), so that an early average is not
            mostly the initial weights.
    """

    def __init__(self, params: Iterable[Any], ema_decay: float | None = None, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.ema_decay = ema_decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        # Before the first update, so that the average starts at the initial weights.
        for parameter in self._updated():
            self.lay_down(parameter)
        result = super().step(closure)
        if self.ema_decay is not None:
            for parameter in self._updated():
                state = self.state[parameter]
                done = float(state["step"])
                decay = min(self.ema_decay, (1 + done) / (10 + done))
                state["ema"].lerp_(parameter, 1 - decay)
        return result

    def _updated(self) -> Iterable[torch.Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"] if parameter.grad is not None)

    def lay_down(self, parameter: torch.Tensor) -> None:
        """Makes a parameter's state where there is none yet: a restore needs it before the first update.

        AdamW itself fills in its moments only where the state is empty, so all of it is laid down here.
        """
        state = self.state[parameter]
        if state:
            return
        fused = self.defaults["fused"]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        if self.ema_decay is not None:
            state["ema"] = parameter.detach().clone()


def build_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> EmaAdamW:
    """AdamW over an objective's parameter groups; groups keep their own ``lr`` and ``weight_decay``.

    Each group's peak rate is kept as ``"peak_lr"``, which the schedule scales.
    """
    complete = [{"lr": config.lr, "weight_decay": config.weight_decay, **group} for group in groups if group["params"]]
    for group in complete:
        group["params"] = list(group["params"])
        group["peak_lr"] = group["lr"]
    return EmaAdamW(
        complete,
        ema_decay=config.ema_decay,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
