"""The forms in which raw data is published, as far as the steps before reading need to know them; light to import."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from atelier.errors import ConfigError

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class RawForm:
    """One form.

    Attributes:
        name: e.g. "sa1b"; its manifests are of kind ``<name>-source`` and ``<name>-raw``.
        folders: what a URI is given for → the folder that its files go to.
        optional: those that may be left out.
        kind_of: a published file's name → what it is, None: of no use.
        check: raises ``ConfigError`` for files (by their places) that do not make a data set.
        draw: writes digit canvases in this form: folder, images, seed → facts of what was written.
    """

    name: str
    folders: dict[str, str]
    optional: tuple[str, ...]
    kind_of: Callable[[str], str | None]
    check: Callable[[Iterable[str]], None]
    draw: Callable[[Path, int, int], dict[str, int]]


def form(name: str) -> RawForm:
    """The form of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMS:
        raise ConfigError(f"there is no raw form {name!r}", f"use one of {', '.join(FORMS)}")
    return FORMS[name]


def _sa1b_kind(name: str) -> str | None:
    return {".tar": "tars", ".parquet": "captions", ".npy": "boxes"}.get(PurePosixPath(name).suffix)


def _sa1b_check(places: Iterable[str]) -> None:
    stems: dict[str, set[str]] = {"tars": set(), "boxes": set()}
    for place in places:
        folder, _, name = place.partition("/")
        if folder in stems:
            stems[folder].add(name.split(".", 1)[0])
    if not stems["tars"]:
        raise ConfigError("the source has no tars", "give the URIs of SA-1B tars")
    without = sorted(stems["tars"] - stems["boxes"])
    if without:
        raise ConfigError(
            f"{len(without)} tars have no boxes file of their name: {', '.join(without[:5])}",
            "boxes/<name>.npy must be given for each <name>.tar",
        )


IMAGES_PER_TAR = 1000


def _sa1b_draw(folder: Path, images: int, seed: int) -> dict[str, int]:
    from atelier.data.digits_sa1b import write_sa1b

    tars = -(-images // IMAGES_PER_TAR)
    write_sa1b(folder, images=images, tars=tars, seed=seed)
    return {"tars": tars}


def _coco_kind(name: str) -> str | None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICTURES:
        return "pictures"
    if suffix == ".json":
        return "captions" if "captions" in PurePosixPath(name).name else "boxes"
    return "boxes" if suffix in (".pth", ".tar") else None


def _coco_check(places: Iterable[str]) -> None:
    places = list(places)
    _has_pictures(places)
    boxes = [place for place in places if _coco_kind(place) == "boxes"]
    if len(boxes) != 1 and not (boxes and all(place.endswith(".tar") for place in boxes)):
        raise ConfigError(
            f"the source has {len(boxes)} files of boxes",
            "give one instances_*.json, one .pth, or the shards (*.tar) of gligen_coco_annotate",
        )


def _coco_images_kind(name: str) -> str | None:
    kind = _coco_kind(name)
    return None if kind == "boxes" else kind


def _has_pictures(places: Iterable[str]) -> None:
    if not any(_coco_kind(place) == "pictures" for place in places):
        raise ConfigError("the source has no images", "give pictures, e.g. s3://bucket/train2017/*.jpg")


def _coco_draw(folder: Path, images: int, seed: int) -> dict[str, int]:
    from atelier.data.digits_coco import write_coco

    write_coco(folder, images, seed)
    return {}


FORMS = {
    "sa1b": RawForm(
        "sa1b",
        {"tars": "tars", "captions": "captions", "boxes": "boxes"},
        (),
        _sa1b_kind,
        _sa1b_check,
        _sa1b_draw,
    ),
    "coco": RawForm(
        "coco",
        {"pictures": "images", "captions": "annotations", "boxes": "annotations"},
        ("captions",),
        _coco_kind,
        _coco_check,
        _coco_draw,
    ),
    # What is still to be annotated.
    "coco-images": RawForm(
        "coco-images",
        {"pictures": "images", "captions": "annotations"},
        ("captions",),
        _coco_images_kind,
        _has_pictures,
        _coco_draw,
    ),
}
