"""``atelier layouts``, ``atelier evaluate-layouts``: what to draw of labelled pictures, and how well it was drawn."""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path

from atelier.errors import ConfigError, DataError
from atelier.evaluation.regional_yardsticks import OBJECTS, RESULT, Boxed, RegionalYardsticks
from atelier.sampling.requests import Request, read_requests
from atelier.storage.atomic import os_errors, write_bytes


def add_layouts_arguments(parser: argparse.ArgumentParser) -> None:
    """``layouts``' arguments."""
    parser.add_argument("images", type=Path, help="folder of the pictures (and of the files with their sizes)")
    parser.add_argument("labels", type=Path, help="folder of label_<image>.json; may be the same")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines for `atelier sample`")
    parser.add_argument("--frame", default="crop", help="boxes are of: the centre square (crop), pad, whole")
    parser.add_argument("--validation", type=Path, metavar="FILE", help="a list of the images to take; default: all")
    parser.add_argument("--count", type=int, default=0, help="at most so many (all)")
    parser.add_argument("--max-boxes", type=int, default=30, help="of a picture, the largest (30)")


def layouts(arguments: argparse.Namespace) -> int:
    """See ``labelled_layouts.labelled_layouts``.

    Raises:
        AtelierError: as there.
    """
    from atelier.evaluation.labelled_layouts import labelled_layouts

    if arguments.count < 0 or arguments.max_boxes < 1:
        raise ConfigError(
            f"--count {arguments.count}, --max-boxes {arguments.max_boxes}", "use 0 (all), and at least 1"
        )
    found = labelled_layouts(
        arguments.images, arguments.labels, arguments.frame, arguments.validation, arguments.count, arguments.max_boxes
    )
    for name, why in list(found.unusable.items())[:10]:
        print(f"{name}: {why}")
    if not found.requests:
        raise DataError(f"{arguments.labels}: no picture gives a layout", "give pictures and their labels")
    lines = [
        json.dumps({"prompt": each.prompt, "boxes": each.boxes, "phrases": each.phrases}, ensure_ascii=False)
        for each in found.requests
    ]
    write_bytes(arguments.out, "".join(line + "\n" for line in lines).encode())
    if arguments.frame == "pad":
        write_bytes(sizes_of(arguments.out), "".join(f"{json.dumps(size)}\n" for size in found.sizes).encode())
    else:
        sizes_of(arguments.out).unlink(missing_ok=True)
    print(
        f"{len(lines):,} layouts in {arguments.out}; {found.without_boxes:,} pictures have no box in their frame, "
        f"{len(found.unusable):,} are of no use"
    )
    return 0


def add_evaluate_layouts_arguments(parser: argparse.ArgumentParser) -> None:
    """``evaluate-layouts``' arguments."""
    parser.add_argument("pictures", type=Path, help="folder that `atelier sample` wrote, or of any pictures")
    parser.add_argument(
        "--layouts",
        type=Path,
        metavar="FILE",
        help="what they are of, in the order of their names; default: what `atelier sample` noted in each",
    )
    parser.add_argument("--out", type=Path, required=True, help=f"folder of {RESULT} and {OBJECTS}")
    parser.add_argument("--clip", default="", metavar="MODEL", help="folder or id, e.g. openai/clip-vit-base-patch32")
    parser.add_argument("--pick", default="", metavar="MODEL", help="e.g. yuvalkirstain/PickScore_v1")
    parser.add_argument("--pick-tokenizer", default="", metavar="MODEL", help="default: that of --clip, or its own")
    parser.add_argument("--sam", default="", metavar="MODEL", help="e.g. facebook/sam-vit-huge")
    parser.add_argument(
        "--legacy", action="store_true", help="SAM's boxes a pixel smaller, as the published code's are"
    )
    parser.add_argument("--batch", type=int, default=64, help="crops at once (64)")


def evaluate_layouts(arguments: argparse.Namespace) -> int:
    """See ``regional_evaluation.evaluate``.

    Raises:
        AtelierError: as there; pictures without layouts.
    """
    if arguments.batch < 1:
        raise ConfigError(f"--batch is {arguments.batch}", "use at least 1")
    yardsticks = RegionalYardsticks(
        arguments.clip, arguments.pick, arguments.pick_tokenizer, arguments.sam, arguments.legacy
    )
    yardsticks.check()
    pictures = boxed(arguments.pictures, arguments.layouts)

    from atelier.evaluation.regional_evaluation import evaluate

    result = evaluate(arguments.out, pictures, yardsticks, arguments.batch)
    if result is None:
        return 0
    for name, value in result["metrics"].items():
        print(f"{name} {value:g}")
    for name, why in result["skipped"].items():
        print(f"{name}: not measured, {why}")
    print(f"{result['objects']:,} boxes in {result['pictures']:,} pictures; {RESULT} and {OBJECTS} in {arguments.out}")
    return 0


def sizes_of(layouts: Path) -> Path:
    """Where the sizes of padded layouts' pictures lie: beside them, ``[W, H]`` a line. Other layouts have none."""
    return layouts.with_suffix(".sizes.jsonl")


def boxed(folder: Path, layouts: Path | None) -> list[Boxed]:
    """A folder's pictures with what they are of.

    Args:
        layouts: JSON lines in the order of the pictures' names; each may have several pictures, one after the other,
            as ``atelier sample --count`` draws them; with ``sizes_of`` them the pictures are squares with padding.
            None: what ``atelier sample`` noted in its PNGs.

    Raises:
        DataError: no pictures, a number of them that is no multiple of the layouts', one without a note, or sizes that
            are not the layouts'.
    """
    from atelier.data.raw_form import PICTURES

    with os_errors(folder):
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    paths = [path for path in paths if path.stem != "sheet"]
    if not paths:
        raise DataError(f"{folder} has no pictures", "give a folder of them")
    if layouts is None:
        return [_noted(path) for path in paths]
    requests = read_requests(layouts)
    each, left = divmod(len(paths), len(requests))
    if left or not each:
        raise DataError(f"{len(paths)} pictures of {len(requests)} layouts", "give as many of each layout, in order")
    padded = _sizes(sizes_of(layouts), len(requests))
    rows = list(zip(requests, padded, strict=True))
    return [_boxed(path, *rows[place // each]) for place, path in enumerate(paths)]


def _boxed(path: Path, request: Request, padded: tuple[int, int] | None) -> Boxed:
    return Boxed(path, request.boxes, request.phrases, padded)


def _sizes(path: Path, count: int) -> list[tuple[int, int]] | list[None]:
    """The sizes of a file of ``count``; None each where there is no such file."""
    if not path.is_file():
        return [None] * count
    with os_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        found = [(int(width), int(height)) for width, height in map(json.loads, lines)]
    except (ValueError, TypeError):
        found = []
    if len(found) != count or any(min(size) < 1 for size in found):
        raise DataError(f"{path} is not of these {count} layouts", "make them anew by `atelier layouts`, or remove it")
    return found


def _noted(path: Path) -> Boxed:
    """What the file itself says that it was drawn from."""
    from PIL import Image

    with os_errors(path):
        data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            note = json.loads(str(image.info["atelier"]))
        boxes, phrases = note["boxes"], note["phrases"]
        if not (isinstance(boxes, list) and _are_texts(phrases)):
            raise TypeError("no lists")
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise DataError(f"{path}: nothing in it says what it was drawn from", "give --layouts") from error
    return Boxed(path, boxes, phrases)


def _are_texts(phrases: Sequence[object]) -> bool:
    return isinstance(phrases, list) and all(isinstance(each, str) for each in phrases)
