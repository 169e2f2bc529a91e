"""Figures of a report as strings of SVG and HTML: a picture with its boxes, a line chart, a histogram, a meter.

Colours are CSS variables of the page (report.css), so every figure follows the light or dark scheme.
"""

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

Box = Sequence[float]
Scale = Callable[[float], float]

#: How many hues the page has for boxes and lines; more series share one faint colour.
HUES = 8
#: How many bars a histogram has at most.
BARS = 40


@dataclass(frozen=True)
class Picture:
    """An image with boxes.

    Attributes:
        image: RGB.
        boxes: normalised xyxy in [0, 1] of the image.
        labels: a word for each box.
        caption: the text below.
    """

    image: Image.Image
    boxes: Sequence[Box] = ()
    labels: Sequence[str] = ()
    caption: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a chart: y over x, both of one length."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def data_uri(image: Image.Image, most: int = 256) -> str:
    """The image inline: small ones as PNG pixel for pixel, larger ones reduced to ``most`` pixels as JPEG."""
    buffer = io.BytesIO()
    if max(image.size) <= 128:
        image.convert("RGB").save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        small = image.convert("RGB")
        small.thumbnail((most, most), Image.Resampling.LANCZOS)
        small.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def open_image(path: Path) -> Image.Image:
    """An image read whole, so that its file is closed."""
    with Image.open(path) as image:
        return image.convert("RGB")


def picture(shown: Picture, asked: bool = True) -> str:
    """SVG of a picture and its boxes; ``asked=False`` draws them dashed: nobody asked the model for them."""
    width, height = shown.image.size
    scale = 100 / max(width, height)
    w, h = width * scale, height * scale
    parts = [f'<image href="{data_uri(shown.image)}" width="{w:.2f}" height="{h:.2f}"/>']
    for index, (x0, y0, x1, y1) in enumerate(shown.boxes):
        style = f"stroke:var(--hue-{index % HUES})" + ("" if asked else ";stroke-dasharray:3 2;opacity:.75")
        parts.append(
            f'<rect x="{x0 * w:.2f}" y="{y0 * h:.2f}" width="{(x1 - x0) * w:.2f}" height="{(y1 - y0) * h:.2f}"'
            f' class="box" style="{style}"/>'
        )
        label = shown.labels[index] if index < len(shown.labels) else ""
        if label and asked:
            # The label sits on the box's upper edge, or inside it where the picture ends above.
            long = 3.9 * len(label) + 3
            x = min(max(x0 * w - 0.6, 0), max(w - long, 0))
            y = y0 * h - 7.6 if y0 * h >= 7.6 else y0 * h
            fill = f"fill:var(--hue-{index % HUES})"
            parts.append(
                f'<rect x="{x:.2f}" y="{y:.2f}" width="{long:.2f}" height="7.6" style="{fill}"/>'
                f'<text x="{x + 1.5:.2f}" y="{y + 5.8:.2f}" class="label">{html.escape(label)}</text>'
            )
    return f'<svg class="picture" viewBox="0 0 {w:.2f} {h:.2f}" role="img">{"".join(parts)}</svg>'


def meter(value: float, bar: float | None, control: float | None) -> str:
    """A share in [0, 1] as a filled track, with a tick at the bar it must reach and a dot at the control."""
    parts = [
        '<rect x="0" y="3" width="100" height="6" rx="3" class="track"/>',
        f'<rect x="0" y="3" width="{100 * _unit(value):.2f}" height="6" rx="3" class="fill"/>',
    ]
    if control is not None:
        parts.append(f'<circle cx="{max(1.5, 100 * _unit(control)):.2f}" cy="6" r="2.2" class="control"/>')
    if bar is not None:
        at = 100 * _unit(bar)
        parts.append(f'<line x1="{at:.2f}" y1="0" x2="{at:.2f}" y2="12" class="tick"/>')
    return f'<svg class="meter" viewBox="-1 -1 102 14" role="img">{"".join(parts)}</svg>'


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    logarithmic: bool = False,
    smooth: bool = False,
    from_zero: bool = False,
) -> str:
    """A line chart with axes, grid and legend.

    Args:
        title: above the chart.
        series: the lines; values that are not finite (or not positive on a logarithmic axis) are left out.
        x_label: below the chart.
        logarithmic: the y axis.
        smooth: draws each line faintly and over it its exponential moving average.
        from_zero: lets the y axis begin at zero.

    Returns:
        "" when no series has two values.
    """
    kept = [clean for line in series if len((clean := _clean(line, logarithmic)).x) >= 2]
    if not kept:
        return ""
    ys = [y for line in kept for y in line.y]
    xs = [x for line in kept for x in line.x]
    low, high = min(0.0 if from_zero else math.inf, *ys), max(ys)
    if high - low < 1e-12:
        low, high = low - abs(low) * 0.1 - 1e-3, high + abs(high) * 0.1 + 1e-3
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    low, high = min([low, *ticks]), max([high, *ticks])
    width, height, left, right, top, bottom = 440.0, 240.0, 46.0, 12.0, 10.0, 34.0
    x_low, x_high = min(xs), max(xs)

    def across(x: float) -> float:
        return left + (x - x_low) / max(x_high - x_low, 1e-12) * (width - left - right)

    def down(y: float) -> float:
        a, b, c = (math.log(low), math.log(high), math.log(y)) if logarithmic else (low, high, y)
        return top + (b - c) / max(b - a, 1e-12) * (height - top - bottom)

    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        )
        parts.append(_word(left - 8, down(tick) + 4, f"{tick:.3g}", "end"))
    for tick in _ticks(x_low, x_high, 6):
        if x_low <= tick <= x_high:
            # Near the right edge a centred number would be cut off.
            anchor = "middle" if across(tick) < width - right - 18 else "end"
            parts.append(
                _word(across(tick) + (right if anchor == "end" else 0), height - bottom + 17, f"{tick:,.0f}", anchor)
            )
    parts.append(_word((left + width - right) / 2, height - 3, x_label))
    many = len(kept) > HUES
    for index, line in enumerate(kept):
        # Too many for hues: one hue, from the first (faint) to the last (full).
        shade = f"var(--many);opacity:{0.3 + 0.7 * index / max(len(kept) - 1, 1):.2f}"
        colour = shade if many else f"var(--hue-{index})"
        points = _path(line.x, line.y, across, down)
        parts.append(f'<path d="{points}" class="{"faint" if smooth else "line"}" style="stroke:{colour}"/>')
        if smooth:
            parts.append(
                f'<path d="{_path(line.x, _average(line.y), across, down)}" class="line" style="stroke:{colour}"/>'
            )
    legend = f'<div class="legend">{len(kept)} blocks, first faint to last full</div>' if many else ""
    if 1 < len(kept) <= HUES:
        legend = "".join(
            f'<span><i style="background:var(--hue-{index})"></i>{html.escape(line.name)}</span>'
            for index, line in enumerate(kept)
        )
        legend = f'<div class="legend">{legend}</div>'
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img">{"".join(parts)}</svg>{legend}</figure>'
    )


def histogram(
    title: str, rows: Sequence[tuple[float, int]], step: float, x_label: str, note: str = "", whole: bool = False
) -> str:
    """Bars of counts, with axes and grid.

    Args:
        rows: each bin's lower edge and its count, by rising edges; bins that are not there are empty. Many bins are
            drawn as fewer, wider ones.
        step: a bin's width.
        note: behind the title, fainter.
        whole: what was counted are whole numbers: a bin stands for its own, and is centred on it.

    Returns:
        "" without rows.
    """
    if not rows:
        return ""
    wide = max(1, math.ceil(((rows[-1][0] - rows[0][0]) / step + 1) / BARS))
    joined: dict[int, int] = {}
    for edge, count in rows:
        place = math.floor(round(edge / step) / wide)
        joined[place] = joined.get(place, 0) + count
    whole = whole and wide == 1
    first, last = min(joined), max(joined) + 1
    width, height, left, right, top, bottom = 440.0, 240.0, 46.0, 12.0, 10.0, 34.0
    ticks = [tick for tick in _ticks(0, max(joined.values())) if tick == int(tick)]
    slot = (width - left - right) / (last - first)

    def down(count: float) -> float:
        return top + (ticks[-1] - count) / ticks[-1] * (height - top - bottom)

    parts = []
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{down(tick):.1f}" y2="{down(tick):.1f}"/>'
        )
        parts.append(_word(left - 8, down(tick) + 4, _short_count(tick), "end"))
    for place, count in sorted(joined.items()):
        x, gap = left + (place - first) * slot, min(slot * 0.12, 2)
        low = place * wide * step
        told = f"{low:g}" if whole else f"{low:g} to {low + wide * step:g}"
        parts.append(
            f'<rect class="fill" x="{x + gap:.1f}" y="{down(count):.1f}" width="{slot - 2 * gap:.1f}"'
            f' height="{down(0) - down(count):.1f}"><title>{told}: {count:,}</title></rect>'
        )
    every = max(1, math.ceil((last - first) / 10))
    # Whole numbers stand below their bar, others below the edge where it begins.
    for place in range(first, last if whole else last + 1, every):
        x = left + (place - first + (0.5 if whole else 0)) * slot
        parts.append(_word(x, height - bottom + 17, f"{place * wide * step:g}"))
    parts.append(_word((left + width - right) / 2, height - 3, x_label))
    faint = f' <span class="note">{html.escape(note)}</span>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}{faint}</figcaption>'
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img">{"".join(parts)}</svg></figure>'
    )


def _short_count(count: float) -> str:
    """Six letters at most: 9,000, 20k, 1.5M."""
    if count < 10_000:
        return f"{count:,.0f}"
    return f"{count / 1e3:g}k" if count < 1e6 else f"{count / 1e6:g}M"


def _word(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _clean(line: Series, logarithmic: bool, most: int = 400) -> Series:
    pairs = [
        (float(x), float(y))
        for x, y in zip(line.x, line.y, strict=True)
        if math.isfinite(y) and (y > 0 or not logarithmic)
    ]
    # Even strides keep the page small; the last point is always there.
    stride = max(1, math.ceil(len(pairs) / most))
    pairs = pairs[::stride] + (pairs[-1:] if pairs and (len(pairs) - 1) % stride else [])
    return Series(line.name, [x for x, _ in pairs], [y for _, y in pairs])


def _average(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a thirtieth of the line, without the start's bias."""
    keep = 1 - 1 / max(2.0, len(values) / 30)
    total, weight, averaged = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        averaged.append(total / weight)
    return averaged


def _path(xs: Sequence[float], ys: Sequence[float], across: Scale, down: Scale) -> str:
    return "M" + "L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in zip(xs, ys, strict=True))


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that span [low, high]."""
    span = max(high - low, 1e-12)
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    factors = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = [factor * 10.0**power for power in powers for factor in factors]
    inside = [tick for tick in candidates if low <= tick <= high]
    below = max((tick for tick in candidates if tick < low), default=low)
    above = min((tick for tick in candidates if tick > high), default=high)
    return [below, *inside, above]
