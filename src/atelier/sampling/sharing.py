"""What a sampling run need not compute twice, without a change to the UNet that it shares with others.

A run's UNet is a shallow copy along the paths to a few of its parts, in whose places stand wrappers; every weight, and
every other part, is the original's.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from atelier.models.grounded_unet import blocks
from atelier.sampling.view import View


class Remembered(View):
    """Keeps its answer for as long as it is asked about the same tensor: a prompt's keys and values, in every step."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self._asked: tuple[Tensor, int, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """As the part's."""
        if self._asked is None or self._asked[0] is not x or self._asked[1] != x._version:
            self._asked = (x, x._version, self.inner(x))
        return self._asked[2]


class SharedHalf(View):
    """Computes the first half of a batch whose halves are equal, and repeats it.

    Args:
        rows: of the batch. Another number is computed whole: a callback may end the guidance amid a run.
    """

    def __init__(self, inner: nn.Module, rows: int) -> None:
        super().__init__(inner)
        self.rows = rows

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """As the part's; other tensors of a row a sample are halved too."""
        if x.shape[0] != self.rows:
            whole: Tensor = self.inner(x, *others, **named)
            return whole

        def half(value: Any) -> Any:
            batched = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == self.rows
            return value[: self.rows // 2] if batched else value

        y: Tensor = self.inner(half(x), *map(half, others), **{name: half(value) for name, value in named.items()})
        return torch.cat((y, y))


def for_a_run(unet: nn.Module, equal_halves: int = 0) -> nn.Module:
    """A view of the UNet for one sampling run.

    Args:
        unet: left as it is. One that is compiled, hooked (DeepSpeed, offloading) or of another class comes back itself.
        equal_halves: rows of a batch that is twice the same latents (classifier-free guidance), which only text and
            grounding tell apart: what comes before the first of these is computed once. 0: of any other.
    """
    if type(unet) is not UNet2DConditionModel or unet._compiled_call_impl is not None or _is_watched(unet):
        return unet
    parts: dict[str, nn.Module] = {}
    for name, block in blocks(unet):
        for part in ("to_k", "to_v"):
            parts[f"{name}.attn2.{part}"] = getattr(block.attn2, part)
        parts[f"{name}.fuser.linear"] = block.fuser.linear
    wrapped: dict[str, nn.Module] = {name: Remembered(part) for name, part in parts.items() if type(part) is nn.Linear}
    if equal_halves:
        wrapped |= {name: SharedHalf(unet.get_submodule(name), equal_halves) for name in _before_text(unet)}
    return overlaid(unet, wrapped)


def overlaid(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A shallow copy of a module with other parts at some of its paths."""
    made = copy.copy(module)
    children = dict(module._modules)
    for child in {name.partition(".")[0] for name in parts}:
        own = {rest: part for name, part in parts.items() for head, _, rest in [name.partition(".")] if head == child}
        inner = children[child]
        assert inner is not None
        children[child] = own[""] if "" in own else overlaid(inner, own)
    made._modules = children
    return made


def _before_text(unet: UNet2DConditionModel) -> list[str]:
    """The parts that see the latents and the time alone, first to last; none where the text is in the time (SDXL)."""
    first: Any = unet.down_blocks[0]
    if unet.config["addition_embed_type"] is not None or not getattr(first, "has_cross_attention", False):
        return []
    attention = "down_blocks.0.attentions.0"
    return ["conv_in", "down_blocks.0.resnets.0", f"{attention}.proj_in", f"{attention}.transformer_blocks.0.attn1"]


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody hooks into a forward pass, who knows the parts as they are."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)  # accelerate's
        for part in module.modules()
    )
