"""CrossFlow's data: the kinds ``autoencoder``, ``imgprep`` and ``captions``."""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from atelier.convert.ldm_vae import config_of, to_diffusers
from atelier.data.squares import coco_square, training_square
from atelier.data.t5_captions import clean_caption
from atelier.recipes.crossflow_objective import latents_of
from tests.parity.case import Case, Comparison


@torch.no_grad()
def autoencoder(case: Case) -> dict[str, Tensor]:
    """LDM's autoencoder through our conversion: moments, a drawn latent, its picture."""
    spec, given = case.spec["config"], case.inputs
    vae = AutoencoderKL(**config_of(spec["ddconfig"], spec["embed_dim"], spec["scale_factor"])).eval()
    vae.load_state_dict(to_diffusers(case.weights))
    posterior = vae.encode(given["image"]).latent_dist
    z = latents_of(posterior.parameters, given["noise"], spec["scale_factor"])
    return {
        "moments": posterior.parameters,
        "z": z,
        "decoded": vae.decode(z / spec["scale_factor"]).sample,
    }


def image_squares(case: Case) -> dict[str, Tensor]:
    """Both squares of every picture, in [-1, 1]."""
    size, result = case.spec["size"], {}
    for name, pixels in case.inputs.items():
        image = Image.fromarray(pixels.numpy().astype(np.uint8))
        number = name.removeprefix("image")
        result[f"train{number}"] = _scaled(training_square(image, size))
        result[f"coco{number}"] = _scaled(coco_square(image, size))
    return result


def _scaled(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, np.float32) / 127.5 - 1).permute(2, 0, 1)


def captions(case: Case) -> Comparison:
    """Cleaned captions."""
    pairs = case.spec["pairs"]
    ours = {f"{place}: {given}": clean_caption(given) for place, (given, _) in enumerate(pairs)}
    return Comparison(ours, {f"{place}: {given}": wanted for place, (given, wanted) in enumerate(pairs)})


KINDS: dict[str, Callable[[Case], dict[str, Tensor] | Comparison]] = {
    "autoencoder": autoencoder,
    "imgprep": image_squares,
    "captions": captions,
}
