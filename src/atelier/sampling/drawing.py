"""Boxes and their phrases drawn on pictures of any aspect, and a sheet of several."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from atelier.evaluation.sheet import COLOURS, GAP


def draw_boxes(image: Image.Image, boxes: Sequence[Sequence[float]], phrases: Sequence[str]) -> Image.Image:
    """A copy of the picture with its boxes (normalised xyxy) outlined and named."""
    drawn = image.convert("RGB")
    if drawn is image:
        drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    thick = max(1, round(min(drawn.size) / 256))
    for number, (box, phrase) in enumerate(zip(boxes, phrases, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        x0, x1 = (round(value * (drawn.width - 1)) for value in (box[0], box[2]))
        y0, y1 = (round(value * (drawn.height - 1)) for value in (box[1], box[3]))
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=thick)
        left, top, right, bottom = pen.textbbox((x0 + thick + 1, y0 + thick), phrase)
        if right <= x1 and bottom <= y1:  # a name wider than its box would lie on the neighbours
            pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
            pen.text((x0 + thick + 1, y0 + thick), phrase, fill="black")
    return drawn


def sheet(pictures: Sequence[Image.Image], columns: int = 4, side: int = 256) -> Image.Image:
    """The pictures in rows, each scaled to fit ``side`` pixels.

    Raises:
        ValueError: there are none.
    """
    if not pictures:
        raise ValueError("a sheet needs at least one picture")
    small = []
    for picture in pictures:
        scale = side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        small.append(picture.resize(size, Image.Resampling.LANCZOS))
    columns = min(columns, len(small))
    rows = -(-len(small) // columns)
    wide, high = max(p.width for p in small) + GAP, max(p.height for p in small) + GAP
    page = Image.new("RGB", (columns * wide + GAP, rows * high + GAP), "white")
    for number, picture in enumerate(small):
        row, column = divmod(number, columns)
        page.paste(picture, (GAP + column * wide, GAP + row * high))
    return page
