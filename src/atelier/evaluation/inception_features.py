"""FID's features of pictures, and the statistics of a folder of photographs."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from atelier.convert.weights import of_file
from atelier.data.squares import coco_square
from atelier.errors import DataError
from atelier.evaluation.gaussian import Gaussian, Moments, read, write
from atelier.models.inception import FEATURES, FidInception
from atelier.models.pretrained import device
from atelier.progress import Progress
from atelier.storage.atomic import os_errors
from atelier.storage.cache import default_cache
from atelier.storage.digest import sha256_file, sha256_json

SIDE = 256
"""The side at which pictures are compared; larger ones are brought to it by bicubic resampling."""
ENOUGH = FEATURES
"""With fewer pictures than features a covariance cannot have full rank."""
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_COUNTER = "num_batches_tracked"


def open_inception(path: Path) -> FidInception:
    """FID's network with the weights of a file (``pt_inception-2015-12-05-6726825d.pth``, or as safetensors).

    Raises:
        DataError: it is not that file: keys are missing, unknown or misshapen; they are listed.
        StorageError: it cannot be read.
    """
    network = FidInception()
    weights = {name: weight for name, weight in of_file(path).items() if not name.endswith(_COUNTER)}
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items() if not name.endswith(_COUNTER)}
    problems = [f"missing {name}" for name in sorted(wanted.keys() - weights.keys())]
    problems += [f"unknown {name}" for name in sorted(weights.keys() - wanted.keys())]
    problems += [
        f"{name} is {list(weights[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"{path} is not FID's Inception: {'; '.join(problems[:5])}{more}",
            "give pt_inception-2015-12-05-6726825d.pth; torchvision's ImageNet weights are others",
        )
    network.load_state_dict({name: weight.tensor().float() for name, weight in weights.items()}, strict=False)
    return network.to(device()).eval().requires_grad_(False)


def at_side(picture: Image.Image) -> Image.Image:
    """The picture as it is compared: RGB, not larger than ``SIDE``."""
    picture = picture.convert("RGB")
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) if max(picture.size) > SIDE else picture


@torch.inference_mode()
def features(network: FidInception, pictures: Sequence[Image.Image]) -> np.ndarray:
    """float64 [B, 2048] of pictures of one size."""
    where = next(network.parameters()).device
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).to(where)
    found: np.ndarray = network(pixels.permute(0, 3, 1, 2).float() / 255).double().cpu().numpy()
    return found


def warn_of_few(count: int, said: Callable[[str], object] = print) -> None:
    """Says that a covariance of so few pictures is rank-deficient, which makes a FID too large."""
    if count < ENOUGH:
        said(
            f"warning: {count:,} pictures for {FEATURES:,} features: the covariance is rank-deficient and FID biased "
            "upwards; compare such figures only with others of as many pictures (published ones: 30,000)"
        )


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, by name.

    Raises:
        DataError: it has none. StorageError: it is no folder.
    """
    with os_errors(folder):
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(_PICTURES)})", "give a folder of pictures")
    return found


def statistics_of_folder(folder: Path, weights: Path, network: FidInception, batch: int = 32) -> Gaussian:
    """The Gaussian of a folder's photographs, each the centre square at 256 px by Lanczos, as COCO's are compared.

    Kept in ``$ATELIER_CACHE/fid`` by the pictures' names, sizes and times of change, and the weights' digest.

    Raises:
        DataError: no pictures, or one that cannot be read.
    """
    paths = pictures_in(folder)
    listing = {path.name: [(stat := path.stat()).st_size, stat.st_mtime_ns] for path in paths}
    key = sha256_json({"pictures": listing, "weights": sha256_file(weights), "crop": f"coco_square {SIDE}"})
    kept = default_cache() / "fid" / f"{key[:24]}.npz"
    if kept.is_file():
        return read(kept, FEATURES)
    warn_of_few(len(paths))
    squares = (_square(path) for path in paths)
    found = moments_of(network, squares, len(paths), batch, "reference").gaussian()
    write(found, kept)
    return found


def moments_of(network: FidInception, pictures: Iterable[Image.Image], count: int, batch: int, label: str) -> Moments:
    """Moments of the features of pictures of one size."""
    moments, progress, held = Moments(FEATURES), Progress(label, count, "pictures"), []
    for picture in pictures:
        held.append(picture)
        if len(held) == batch:
            moments.add(features(network, held))
            progress.advance(len(held))
            held = []
    if held:
        moments.add(features(network, held))
        progress.advance(len(held))
    return moments


def open_picture(path: Path) -> Image.Image:
    """A picture's pixels.

    Raises:
        DataError: it is damaged. StorageError: it cannot be read.
    """
    with os_errors(path):
        opened = path.open("rb")
    with opened:
        try:
            with Image.open(opened) as image:
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: no picture that can be read ({error})", "replace or remove it") from error


def _square(path: Path) -> Image.Image:
    return coco_square(open_picture(path), SIDE)
