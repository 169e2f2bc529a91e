"""A few pictures of the raw data, for the report."""

import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from atelier.errors import DataError
from atelier.evaluation.figures import Picture
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest

if TYPE_CHECKING:
    from atelier.data.filters import Filters

LOOKED_AT = 20
"""Examples that are looked at for each that is shown: filters may drop most of them."""


def canvases(folder: InputFolder, most: int, shards: Manifest | None = None) -> list[Picture]:
    """The first pictures, cut to the centre square, with boxes and phrases where there are any.

    Args:
        shards: made of the raw data; what their filters dropped is not shown.
    """
    shown = folder.manifest.kind in ("coco-raw", "captioned-raw", "img2dataset-raw", "rich-context-raw")
    return _of_source(folder, most, *_sifted_by(shards)) if shown else _of_tars(folder, most)


def _sifted_by(shards: Manifest | None) -> "tuple[Filters | None, int]":
    """The filters that preprocess used, and the greatest side that it encoded."""
    from atelier.data.filters import Filters

    found = shards.made_by.get("params", {}).get("filters") if shards else None
    if shards is None or found is None:
        return None, 0
    return Filters(**found), max([shards.metadata["resolution"], *shards.metadata.get("resolutions", [])])


def _of_source(folder: InputFolder, most: int, filters: "Filters | None", side: int) -> list[Picture]:
    from atelier.data.filters import reason
    from atelier.data.geometry import decode_whole
    from atelier.data.letterbox import cut
    from atelier.data.raw_example import RawExample
    from atelier.data.raw_source import open_source
    from atelier.data.settings import Settings

    source, shown = open_source(folder.manifest), list[Picture]()
    for example in source.first(most * LOOKED_AT):  # type: ignore[attr-defined]  # these kinds' sources have it
        if len(shown) == most:
            break
        try:
            if not isinstance(example, RawExample) or (filters and reason(example, filters, side)):
                continue  # preprocess has counted it
            whole = decode_whole(example.image, 1)
            image = _centre_square(cut(whole, example.inner) if example.inner else whole)
        except ValueError:
            continue  # likewise
        chosen = source.select(example, Settings(res=image.width, samples_per_shard=1, batch=1))
        shown.append(Picture(image, chosen.boxes.tolist(), [word(phrase) for phrase in chosen.phrases], chosen.caption))
    return shown


def _of_tars(folder: InputFolder, most: int) -> list[Picture]:
    tars = folder.names("*.tar") + folder.names("*.tar.gz")
    if not tars:
        return []
    tar = min(tars)
    rows = _boxes(folder, Path(tar).name.split(".")[0])
    shown: list[Picture] = []
    with folder.look_into(tar) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if len(shown) == most:
                break
            if not member.name.endswith(".jpg"):
                continue
            data = archive.extractfile(member)
            try:
                image = _centre_square(Image.open(io.BytesIO(data.read() if data else b"")).convert("RGB"))
            except OSError:
                continue  # preprocess has quarantined and counted it
            caption, boxes, phrases = rows.get(_number(member.name), ("", [], []))
            shown.append(Picture(image, boxes, [word(phrase) for phrase in phrases], caption))
    return shown


def _centre_square(image: Image.Image) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _number(name: str) -> int:
    digits = "".join(sign for sign in Path(name).stem if sign.isdigit())
    return int(digits) if digits else -1


def _boxes(folder: InputFolder, tar: str) -> dict[int, tuple[str, list[list[float]], list[str]]]:
    """Caption, boxes (xyxy of the centre square) and phrases by image number, from the tar's boxes file."""
    from atelier.data.safe_npy import load_object_array

    name = next((name for name in folder.names("*.npy") if Path(name).stem == tar), None)
    if name is None:
        return {}
    try:
        rows = load_object_array(folder.fetch(name))
    except DataError:
        return {}
    found = {}
    for index, caption, boxes, scores, phrases in rows:
        kept = [place for place, score in enumerate(scores) if float(score) > 0.25]
        corners = []
        for place in kept:
            x, y, w, h = (float(value) for value in boxes[place])
            corners.append([max(x - w / 2, 0.0), max(y - h / 2, 0.0), min(x + w / 2, 1.0), min(y + h / 2, 1.0)])
        found[int(index)] = (str(caption), corners, [str(phrases[place]) for place in kept])
    return found


def word(phrase: str) -> str:
    """A phrase without its article, short enough for a label."""
    words = phrase.split()
    text = " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)
    return text if len(text) <= 14 else text[:13] + "…"
