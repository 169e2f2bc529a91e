"""What differs between the twins of two base models; all else of making one is shared."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTokenizer

from atelier.errors import ConfigError
from atelier.recipes.twins.text import TextEncoder

Embeddings = dict[str, Tensor]


@dataclass(frozen=True)
class TwinShape:
    """The parts of a twin that follow its base model.

    Attributes:
        make_unet: side of the latent → a fresh UNet.
        make_scheduler: the noise schedule.
        make_text: tokenizer, seed → fresh text encoders, in the order of their folders.
        open_text: folder → a function from captions to embeddings by name, the caption axis first.
        unet_arguments: embeddings, pixels of the side → the UNet's keyword arguments.
        empty_is_zeros: whether the sampler takes zeros for an absent prompt (SDXL), not the encoded "".
        index: ``model_index.json`` but for the version and the scheduler.
    """

    make_unet: Callable[[int], UNet2DConditionModel]
    make_scheduler: Callable[[], DDIMScheduler]
    make_text: Callable[[CLIPTokenizer, int], Sequence[TextEncoder]]
    open_text: Callable[[Path], Callable[[Sequence[str]], Embeddings]]
    unet_arguments: Callable[[Embeddings, int], dict[str, Any]]
    empty_is_zeros: bool
    index: dict[str, Any]


def shape(name: str) -> TwinShape:
    """The shape of a twin by the name of its shipped folder, e.g. ``"sdxl_twin"`` (module ``twins.sdxl``).

    Raises:
        ConfigError: there is no such twin.
    """
    from atelier.recipes.twins.assets import PARTS

    if name not in PARTS:
        raise ConfigError(f"there is no twin {name!r}", f"use one of {', '.join(PARTS)}")
    found: TwinShape = importlib.import_module(f"{__package__}.{name.removesuffix('_twin')}").SHAPE
    return found


def make_scheduler(**more: Any) -> DDIMScheduler:
    """Stable Diffusion's betas, rescaled to zero terminal SNR (arXiv 2305.08891), v-prediction.

    Unlike the published models, because a tiny model that never sees pure noise in training cannot start from it.

    Args:
        more: further fields of the scheduler's configuration.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        **more,
    )
