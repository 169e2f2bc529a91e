"""A contact sheet: pictures with their boxes drawn on them, the control under each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ("#ff5d5d", "#4fc3f7", "#aed581", "#ffd54f", "#ba68c8", "#ff8a65")
GAP = 6


def with_boxes(image: Image.Image, boxes: Sequence[Sequence[float]], side: int) -> Image.Image:
    """The picture scaled to ``side`` pixels, its boxes (normalised xyxy) outlined."""
    scaled = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scaled)
    for number, box in enumerate(boxes):
        x0, y0, x1, y1 = (value * (side - 1) for value in box)
        draw.rectangle((x0, y0, x1, y1), outline=COLOURS[number % len(COLOURS)], width=2)
    return scaled


def contact_sheet(folder: Path, entries: Sequence[dict[str, Any]], columns: int = 8, side: int = 128) -> Image.Image:
    """Rows of grounded pictures, each row over its ungrounded controls.

    Args:
        folder: where the entries' pictures lie.
        entries: as in ``samples.json``: ``grounded``, ``ungrounded`` and ``boxes``.
    """
    columns = max(min(columns, len(entries)), 1)
    rows = -(-len(entries) // columns)
    cell = side + GAP
    sheet = Image.new("RGB", (columns * cell + GAP, rows * (2 * cell + GAP) + GAP), "white")
    for number, entry in enumerate(entries):
        row, column = divmod(number, columns)
        left, top = GAP + column * cell, GAP + row * (2 * cell + GAP)
        for offset, kind in enumerate(("grounded", "ungrounded")):
            with Image.open(folder / entry[kind]) as image:
                sheet.paste(with_boxes(image, entry["boxes"], side), (left, top + offset * cell))
    return sheet
