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
        beside: names' ends of files that lie beside the data and are of no use; left out, and said so.
        draw: writes digit canvases in this form: folder, images, seed, pixels of the short side → facts of what was
            written; None: cannot.
    """

    name: str
    folders: dict[str, str]
    optional: tuple[str, ...]
    kind_of: Callable[[str], str | None]
    check: Callable[[Iterable[str]], None]
    beside: tuple[str, ...] = ()
    draw: Callable[[Path, int, int, int], dict[str, int]] | None = None


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


def _sa1b_latents_kind(name: str) -> str | None:
    path = PurePosixPath(name)
    return ("latents" if "latents" in path.parent.name else "boxes") if path.suffix == ".npy" else None


def _boxes_for_each(folder: str, what: str) -> Callable[[Iterable[str]], None]:
    """A check that every file in ``folder`` has a boxes file of its name."""

    def check(places: Iterable[str]) -> None:
        stems: dict[str, set[str]] = {folder: set(), "boxes": set()}
        for place in places:
            own, _, name = place.partition("/")
            if own in stems:
                stems[own].add(name.split(".", 1)[0])
        if not stems[folder]:
            raise ConfigError(f"the source has no {folder}", f"give the URIs of {what}")
        without = sorted(stems[folder] - stems["boxes"])
        if without:
            raise ConfigError(
                f"{len(without)} {folder} have no boxes file of their name: {', '.join(without[:5])}",
                f"boxes/<name>.npy must be given for each file of {folder}",
            )

    return check


IMAGES_PER_TAR = 1000


def _sa1b_draw(folder: Path, images: int, seed: int, size: int) -> dict[str, int]:
    from atelier.data.digits_sa1b import write_sa1b

    tars = -(-images // IMAGES_PER_TAR)
    write_sa1b(folder, images=images, tars=tars, seed=seed, size=size)
    return {"tars": tars}


def _coco_kind(name: str) -> str | None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICTURES:
        return "pictures"
    if suffix == ".json":
        return "captions" if "captions" in PurePosixPath(name).name else "boxes"
    return "boxes" if suffix in (".pth", ".tar") else None


def is_stuff(name: str) -> bool:
    """Whether a file is COCO's ``stuff_*.json``, which may lie beside its instances."""
    name = PurePosixPath(name).name
    return name.startswith("stuff") and name.endswith(".json")


def _coco_check(places: Iterable[str]) -> None:
    places = list(places)
    _has_pictures(places)
    boxes = [place for place in places if _coco_kind(place) == "boxes" and not is_stuff(place)]
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


def _coco_draw(folder: Path, images: int, seed: int, size: int) -> dict[str, int]:
    from atelier.data.digits_coco import write_coco

    write_coco(folder, images, seed, size=size)
    return {}


LISTS = (".jsonl", ".jsonl.tgz", ".jsonl.tar.gz")
PARTS = (".tgz", ".tar.gz", ".tar")


def is_list(name: str) -> bool:
    """Whether a file is a list of prompts, plain or in a tar as JourneyDB publishes its own."""
    return name.lower().endswith(LISTS)


def is_part(name: str) -> bool:
    """Whether a file is a tar of pictures, as JourneyDB publishes its own."""
    return name.lower().endswith(PARTS) and not is_list(name)


def _captioned_kind(name: str) -> str | None:
    if is_list(name):
        return "captions"
    return "pictures" if is_part(name) or PurePosixPath(name).suffix.lower() in PICTURES else None


def _captioned_check(places: Iterable[str]) -> None:
    places = list(places)
    kinds = [_captioned_kind(place) for place in places]
    if "pictures" not in kinds:
        raise ConfigError(
            "the source has no images", "give pictures, e.g. s3://bucket/imgs/*.jpg or imgs/{000..199}.tgz"
        )
    if "captions" not in kinds:
        raise ConfigError("the source has no list of prompts", "give a .jsonl with img_path and prompt a line")
    tars = [place for place in places if is_part(place)]
    loose = [place for place, kind in zip(places, kinds, strict=True) if kind == "pictures" and not is_part(place)]
    if tars and loose:
        raise ConfigError(
            f"the source has tars and loose pictures, e.g. {tars[0]} and {loose[0]}", "give one or the other"
        )
    _own_stems(tars)


def _own_stems(tars: Iterable[str]) -> None:
    """Shards are named after their tar: ``000.tgz`` and ``000.tar`` would give the same."""
    known: dict[str, str] = {}
    for tar in tars:
        before = known.setdefault(PurePosixPath(tar).name.split(".", 1)[0], tar)
        if before != tar:
            raise ConfigError(f"{before} and {tar} would give shards of one name", "give each its own name")


def _captioned_draw(folder: Path, images: int, seed: int, size: int) -> dict[str, int]:
    from atelier.data.digits_captioned import write_captioned

    write_captioned(folder, images, seed, size)
    return {}


def is_tar(name: str) -> bool:
    """Whether a file is a tar as img2dataset writes them."""
    return name.lower().endswith(".tar")


def _img2dataset_kind(name: str) -> str | None:
    return "pictures" if is_tar(name) else None


def _img2dataset_check(places: Iterable[str]) -> None:
    tars = [place for place in places if is_tar(place)]
    _own_stems(tars)
    if not tars:
        raise ConfigError(
            "the source has no tars",
            "give those that img2dataset wrote as pictures, e.g. s3://bucket/*.tar; images want captions beside them",
        )


def _img2dataset_draw(folder: Path, images: int, seed: int, size: int) -> dict[str, int]:
    from atelier.data.digits_tars import write_tars

    return write_tars(folder, images, seed, size)


def is_label(name: str) -> bool:
    """Whether a file is a label of rich-context data: ``label_<image>.json``."""
    name = PurePosixPath(name).name
    return name.startswith("label_") and name.endswith(".json")


def is_validation(name: str) -> bool:
    """Whether a file lists images of rich-context data that are held out: ``validation*.json``."""
    name = PurePosixPath(name).name
    return name.startswith("validation") and name.endswith(".json")


def is_packed(place: str) -> bool:
    """Whether a file of downloaded rich-context data is a tar of pictures: one in the pictures' folder."""
    path = PurePosixPath(place)
    return path.parts[0] == FORMS["rich-context"].folders["pictures"] and path.suffix == ".tar"


def _rich_kind(name: str) -> str | None:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICTURES:
        return "pictures"
    if suffix == ".tar":
        return "boxes"
    if suffix != ".json":
        return None
    return "captions" if "captions" in PurePosixPath(name).name and not is_label(name) else "boxes"


def _rich_images_kind(name: str) -> str | None:
    kind = "captions" if is_list(name) else _rich_kind(name)
    if kind != "boxes":
        return kind
    # What lies beside a picture comes with it; there may be labels, which are to be made.
    return None if name.endswith(".tar") or is_label(name) or is_validation(name) else "pictures"


def _rich_check(places: Iterable[str]) -> None:
    places = list(places)
    packed = [place for place in places if is_packed(place)]
    if not packed:
        _has_pictures(places)
    if not any(is_label(place) or (place.endswith(".tar") and place not in packed) for place in places):
        raise ConfigError(
            "the source has no label_<image>.json",
            "give labels as boxes, e.g. s3://bucket/labels/*.json, or the shards (*.tar) of rich_context_annotate",
        )


def _rich_draw(folder: Path, images: int, seed: int, size: int) -> dict[str, int]:
    from atelier.data.digits_rich import write_rich

    write_rich(folder, images, seed, size)
    return {}


FORMS = {
    "captioned": RawForm(
        "captioned",
        {"pictures": "images", "captions": "annotations"},
        (),
        _captioned_kind,
        _captioned_check,
        draw=_captioned_draw,
    ),
    "img2dataset": RawForm(
        "img2dataset",
        {"pictures": "tars"},
        (),
        _img2dataset_kind,
        _img2dataset_check,
        # The table of a tar's samples, and what its download counted.
        beside=(".parquet", "_stats.json"),
        draw=_img2dataset_draw,
    ),
    "sa1b": RawForm(
        "sa1b",
        {"tars": "tars", "captions": "captions", "boxes": "boxes"},
        (),
        _sa1b_kind,
        _boxes_for_each("tars", "SA-1B tars"),
        draw=_sa1b_draw,
    ),
    "sa1b-latents": RawForm(
        "sa1b-latents",
        {"latents": "latents", "boxes": "boxes"},
        (),
        _sa1b_latents_kind,
        _boxes_for_each("latents", "sa1b-sdxl-latents files"),
    ),
    "coco": RawForm(
        "coco",
        {"pictures": "images", "captions": "annotations", "boxes": "annotations"},
        ("captions",),
        _coco_kind,
        _coco_check,
        draw=_coco_draw,
    ),
    # What is still to be annotated.
    "coco-images": RawForm(
        "coco-images",
        {"pictures": "images", "captions": "annotations"},
        ("captions",),
        _coco_images_kind,
        _has_pictures,
        draw=_coco_draw,
    ),
    # Pictures with their sizes beside them (the files of img2dataset), and labels.
    "rich-context": RawForm(
        "rich-context",
        {"pictures": "images", "captions": "annotations", "boxes": "annotations"},
        ("captions",),
        _rich_kind,
        _rich_check,
        # With the labels' tars lie the tables of what is in them.
        beside=(".txt", ".parquet", "_stats.json", ".tar.index.json"),
        draw=_rich_draw,
    ),
    # What is still to be labelled.
    "rich-context-images": RawForm(
        "rich-context-images",
        {"pictures": "images", "captions": "annotations"},
        ("captions",),
        _rich_images_kind,
        _has_pictures,
        beside=(".txt", ".parquet", "_stats.json"),
        draw=_rich_draw,
    ),
}
