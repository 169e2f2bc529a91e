"""Tags by RAM (Recognize Anything, arXiv 2306.03514), from its own package; only the way there is ours."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from atelier.annotate.loading import device
from atelier.annotate.places import RAM_FILE, Place
from atelier.errors import ConfigError
from atelier.storage.torch_zip import is_zip

SIZE = 384
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class RAMTagger:
    """``Tagger``.

    Args:
        place: RAM's weights, a ``.pth`` file or the repository that holds ``RAM_FILE``. torch opens it with
            ``weights_only``, which runs nothing.

    Raises:
        ConfigError: the package is not there or does not fit this transformers, or the weights cannot be read.
    """

    def __init__(self, place: Place) -> None:
        try:
            build = importlib.import_module("ram.models").ram
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the package ram cannot be imported ({error})",
                "install recognize-anything in a version that runs with this transformers, or give a CLIP or SigLIP "
                "model as the tagger",
            ) from error
        weights = _weights(place)
        try:
            # What opens so holds no pickle that runs, however the package opens it then.
            is_zip(weights)
            torch.load(weights, map_location="meta", weights_only=True)
            model = build(pretrained=str(weights), image_size=SIZE, vit="swin_l")
        except Exception as error:  # a foreign package: anything
            raise ConfigError(
                f"{weights}: RAM cannot be loaded ({type(error).__name__}: {error})", f"give {RAM_FILE} as published"
            ) from error
        self._model = model.to(device()).eval().requires_grad_(False)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """float32 [3, 384, 384]: stretched to a square, ImageNet's mean and deviation."""
        pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32) / 255
        return ((pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)

    @torch.inference_mode()
    def tags(self, prepared: Sequence[np.ndarray]) -> list[list[str]]:
        """RAM answers with "a | b | c"."""
        english, _ = self._model.generate_tag(torch.from_numpy(np.stack(prepared)).to(device()))
        return [[tag.strip() for tag in line.split("|") if tag.strip()] for line in english]


def _weights(place: Place) -> Path:
    if not place.revision:
        return Path(place.name)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(place.name, RAM_FILE, revision=place.revision))
    except Exception as error:  # the hub client's transport raises its own family
        raise ConfigError(
            f"{place.name}: {RAM_FILE} cannot be fetched ({type(error).__name__}: {error})",
            "check the network, or give the file: tagger=ram:/path/ram_swin_large_14m.pth",
        ) from error
