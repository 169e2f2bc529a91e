"""The page of a text-to-image evaluation: its figures, what was left out, and the first pictures with their prompts."""

import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from atelier.evaluation.figures import Picture, picture
from atelier.evaluation.inception_features import open_picture
from atelier.evaluation.text_images import Wanted

SHOWN = 48


def page(folder: Path, result: dict[str, Any], pictures: Sequence[Wanted], title: str = "Evaluation") -> str:
    """One self-contained HTML page.

    Args:
        folder: where the pictures lie.
        result: ``metrics``, ``skipped`` (metric → why), ``warnings`` and ``settings``.
    """
    style = files("atelier.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    cards = [
        f'<div class="metric"><span class="name">{_text(name)}</span><b>{value:.4g}</b></div>'
        for name, value in result["metrics"].items()
    ]
    notes = [f"{name}: not measured, {why}" for name, why in result["skipped"].items()] + list(result["warnings"])
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    shown = [
        f'<div class="single">{picture(Picture(open_picture(one.path(folder)), caption=one.prompt))}'
        f"<p>{_text(one.prompt)}</p></div>"
        for one in pictures[:SHOWN]
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        f"<header><h1>{_text(title)}</h1><p>{_text(settings)}</p></header>\n"
        f'<div class="metrics">{"".join(cards)}</div>\n'
        f"<section>{''.join(f'<p>{_text(note)}</p>' for note in notes)}</section>\n"
        f"<section><h2>Pictures</h2><p>The first {len(shown)} of {len(pictures):,}, not picked.</p>"
        f'<div class="singles">{"".join(shown)}</div></section>\n</main></body></html>\n'
    )


def _text(value: object) -> str:
    return html.escape(str(value))
