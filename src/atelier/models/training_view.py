"""A grounded UNet as its training step runs it: the same function, less around it.

The UNet itself stays what diffusers made, for sampling, export and checkpoints; the step calls a shallow copy in which
every transformer block is a ``LeanBlock``.
"""

from diffusers import UNet2DConditionModel
from torch import nn

from atelier.models.attention import attend
from atelier.models.grounded_unet import blocks
from atelier.models.lean_block import LeanBlock, is_plain
from atelier.models.overlay import is_watched, overlaid


class TrainingView:
    """Makes a UNet's view at its first step and keeps it."""

    def __init__(self) -> None:
        self._made: tuple[nn.Module, nn.Module] | None = None

    def of(self, unet: nn.Module) -> nn.Module:
        """What a training step calls in the UNet's place.

        Its results are the UNet's up to rounding (attention on a CPU adds up in another order). Every parameter is
        the UNet's own.

        Args:
            unet: left as it is. One that is compiled, hooked (ZeRO 3 gathers each module's weights as it is called) or
                of another class comes back itself.
        """
        if type(unet) is not UNet2DConditionModel or unet._compiled_call_impl is not None or is_watched(unet):
            return unet
        if self._made is None or self._made[0] is not unet:
            parts = {name: LeanBlock(block, block.fuser, attend) for name, block in blocks(unet) if is_plain(block)}
            self._made = (unet, overlaid(unet, parts))
        return self._made[1]
