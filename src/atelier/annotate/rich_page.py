"""The page of a set of rich labels: what they are like, and the first pictures with what was said of their objects."""

import html
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor

from atelier.annotate.rich_statistics import WHOLE
from atelier.data import rle
from atelier.evaluation.figures import HUES, Picture, histogram, picture

#: A histogram's title, and what its axis counts.
TITLES = {
    "words": ("Words of a description", "words"),
    "objects": ("Objects of a picture", "objects"),
    "unique": ("Different words of a picture", "words"),
    "fog": ("Gunning fog of a picture", "index, about years of school"),
    "fit": ("CLIP of description and crop", "100 · cos"),
}
TINTS = ("#d9482b", "#1f77b4", "#2f8f4e", "#8a4fbf", "#c98a00", "#0f8f9a", "#c2417c", "#6d6f1a")
OPACITY = 0.45


class Labelled(NamedTuple):
    """A picture (the file's pixels, its border included) and its label's content."""

    image: Image.Image
    label: Mapping[str, Any]


def page(title: str, subtitle: str, made: Mapping[str, Any], shown: Sequence[Labelled]) -> str:
    """One self-contained HTML page.

    Args:
        made: what ``rich_statistics.statistics`` made.
        shown: pictures, not picked.
    """
    style = files("atelier.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    charts = [
        histogram(
            heading,
            [(float(edge), int(count)) for edge, count in made["histograms"][kind]["counts"]],
            made["histograms"][kind]["step"],
            axis,
            f"mean {made['means'][kind]:.3g}",
            whole=kind in WHOLE,
        )
        for kind, (heading, axis) in TITLES.items()
        if kind in made["histograms"]
    ]
    rows = "".join(
        f'<tr><td>{_text(name)}</td><td class="number">{count:,}</td></tr>' for name, count in made["counts"].items()
    )
    cards = "".join(map(_card, shown))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        f"<header><h1>{_text(title)}</h1><p>{_text(subtitle)}</p></header>\n"
        f'<section><h2>What they are like</h2><p>Counts over all labels.</p><div class="charts">{"".join(charts)}</div>'
        f"</section>\n<section><h2>Where it comes from</h2><p>Pictures by their captions, objects by who described"
        f' them.</p><div class="scroll"><table>{rows}</table></div></section>\n'
        f"<section><h2>Pictures</h2><p>The first {len(shown)}, not picked; tinted where they are outlined.</p>"
        f'<div class="pairs">{cards}</div></section>\n</main></body></html>\n'
    )


def _card(each: Labelled) -> str:
    objects = each.label["annos"]
    width, height = each.image.size
    boxes = [
        (x / width, y / height, (x + w) / width, (y + h) / height) for x, y, w, h in (one["bbox"] for one in objects)
    ]
    said = "".join(
        f'<li style="border-color:var(--hue-{place % HUES})">{_text(one["caption"])} '
        f"<small>{_text(one['category_name'])} {one['pred_score']:.2f}</small></li>"
        for place, one in enumerate(objects)
    )
    return (
        f'<div class="single">{picture(Picture(tinted(each), boxes))}'
        f'<p>{_text(each.label["caption"])}</p><ul class="objects">{said}</ul></div>'
    )


def tinted(each: Labelled) -> Image.Image:
    """The picture with each object's outline in its hue."""
    pixels = np.asarray(each.image.convert("RGB"), np.float32).copy()
    for place, one in enumerate(each.label["annos"]):
        if "mask" in one and one["mask"]["size"] == [each.image.height, each.image.width]:
            mask = rle.decode(one["mask"])
            tint = np.array(ImageColor.getrgb(TINTS[place % HUES]), np.float32)
            pixels[mask] = (1 - OPACITY) * pixels[mask] + OPACITY * tint
    return Image.fromarray(pixels.astype(np.uint8))


def _text(value: object) -> str:
    return html.escape(str(value))
