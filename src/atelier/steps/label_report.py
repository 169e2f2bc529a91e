"""Label report: the page of a set of rich labels, and its numbers."""

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from atelier.errors import DataError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.atomic import write_json
from atelier.storage.digest import sha256_bytes
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest

if TYPE_CHECKING:
    from atelier.annotate.rich_page import Labelled

VERSION = 1
SHOWN = 12


def run(*, raw: Manifest, labels: Manifest, title: str, artifacts: str) -> Manifest:
    """Writes ``report.html``, one self-contained page, and ``statistics.json``; a manifest of kind ``label-report``.

    Args:
        raw: kind ``rich-context-images-raw``, of which the labels are.
        labels: kind ``rich-context-labels``.

    Raises:
        DataError: labels of another kind, or a damaged file.
    """
    if labels.kind != "rich-context-labels":
        raise DataError(f"{labels.uri}: a {labels.kind}", "give what annotate made for rich_context")

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        from atelier.annotate.rich_page import page

        made = labels.metadata.get("statistics", {"means": {}, "counts": {}, "histograms": {}})
        shown = _first(ctx.inputs["raw"], ctx.inputs["labels"])
        boxes = labels.metadata["boxes"]["kept"]
        subtitle = f"{labels.metadata['samples']:,} pictures, {boxes:,} objects"
        (ctx.out.path / "report.html").write_text(page(title, subtitle, made, shown), encoding="utf-8")
        write_json(ctx.out.path / "statistics.json", made)
        return "label-report", {"title": title, "means": made["means"], "counts": made["counts"]}

    style = sha256_bytes(files("atelier.evaluation").joinpath("report.css").read_bytes())
    return run_step(
        name="label_report",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={"raw": raw, "labels": labels},
        params={"title": title, "style": style},
        artifacts=artifacts,
    )


def _first(raw: InputFolder, labels: InputFolder) -> "list[Labelled]":
    """The first pictures that have a label."""
    from atelier.annotate.rich_page import Labelled
    from atelier.data.geometry import decode_whole
    from atelier.data.picture_folder import PictureFolder
    from atelier.data.raw_example import RawExample
    from atelier.data.rich_label import PREFIX
    from atelier.data.tar_members import TarMembers

    shards = labels.names("*.tar")[:1]
    packed = TarMembers([labels.fetch(name) for name in shards], "json", "run annotate again")
    found: list[Labelled] = []
    for example in PictureFolder(raw.manifest).first(SHOWN * 4):
        if len(found) == SHOWN:
            break
        label = packed.read(PREFIX + example.key, "json")
        if label is not None and isinstance(example, RawExample):
            found.append(Labelled(decode_whole(example.image, 1), json.loads(label)))
    return found
