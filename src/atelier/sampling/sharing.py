"""What a sampling run need not compute twice, without a change to the UNet that it shares with others.

A run's UNet is a shallow copy along the paths to a few of its parts, in whose places stand wrappers; every weight, and
every other part, is the original's.
"""

from diffusers import UNet2DConditionModel
from torch import nn

from atelier.models.gligen import GatedSelfAttention
from atelier.models.grounded_unet import blocks
from atelier.models.overlay import is_watched, overlaid
from atelier.models.regional.fusers import RegionalCrossAttention
from atelier.sampling.remembered import Remembered
from atelier.sampling.run_block import RunBlock, fits


def for_a_run(unet: nn.Module) -> nn.Module:
    """A view of the UNet for one sampling run; its answers are the UNet's to the last bit.

    (Under classifier-free guidance SD's layers before the text see the same latents twice. Computing them for one half
    saves a little and rounds differently, which guidance makes 2e-4 of in a few steps: not done.)

    Args:
        unet: left as it is. One that is compiled, hooked (DeepSpeed, offloading) or of another class comes back itself.
    """
    if type(unet) is not UNet2DConditionModel or unet._compiled_call_impl is not None or is_watched(unet):
        return unet
    parts: dict[str, nn.Module] = {}
    for name, block in blocks(unet):
        fuser = _for_a_run(block.fuser)
        if fits(block):
            parts[name] = RunBlock(block, fuser)
        else:
            parts |= {f"{name}.attn2": _remembering(block.attn2, "to_k", "to_v"), f"{name}.fuser": fuser}
    return overlaid(unet, parts)


def _for_a_run(fuser: nn.Module) -> nn.Module:
    """With what it makes of the grounding alone remembered."""
    if isinstance(fuser, GatedSelfAttention):
        return _remembering(fuser, "linear")
    if isinstance(fuser, RegionalCrossAttention):
        return overlaid(fuser, {"attn": _remembering(fuser.attn, "to_k", "to_v")})
    return fuser


def _remembering(module: nn.Module, *parts: str) -> nn.Module:
    """With ``Remembered`` in the place of those of its parts that are plain ``Linear``."""
    found = {name: getattr(module, name) for name in parts}
    return overlaid(module, {name: Remembered(part) for name, part in found.items() if type(part) is nn.Linear})
