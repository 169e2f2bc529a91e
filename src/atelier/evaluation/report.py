"""A run's page: one self-contained HTML file that shows what the model draws, and where everything came from.

No script, no outside reference: it can be mailed, archived, and opened in Kubeflow's sandbox. Pictures are inlined at
their own size and scaled by the browser, boxes and curves are SVG; a laptop run's page is about one MB.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from PIL import Image

from atelier.evaluation.bars import LOWER_IS_BETTER, Bar
from atelier.evaluation.control import CONTROLS, Control
from atelier.evaluation.figures import Picture, Series, chart, data_uri, meter, picture

#: How the name of a chart of gates begins.
GATES = "gates"
#: What a metric's name does not say by itself.
MEANINGS = {
    "layout_accuracy": "the right digit in its box",
    "layout_fill": "boxes that are not empty",
    "ink_in_boxes": "ink inside the boxes",
}


@dataclass(frozen=True)
class Pair:
    """One held-out layout: the picture with grounding, and the same prompt and seed without.

    ``right`` and ``right_ungrounded`` count the boxes in which the judge read what was asked for; None: not judged.
    """

    grounded: Picture
    ungrounded: Picture
    right: int | None = None
    right_ungrounded: int | None = None


@dataclass(frozen=True)
class Lineage:
    """One step of the run, from its manifest."""

    step: str
    kind: str
    uri: str
    digest: str
    key: str
    code: str
    seconds: float
    files: int
    bytes: int
    params: Mapping[str, Any]
    inputs: Sequence[str]
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """All that a page shows.

    ``bars`` are by metric; ``start`` is ``start.json`` of a training that began with another model's weights;
    ``control`` is what samples are shown beside; ``notes`` say what was not measured, and what a figure is not to be
    compared with.
    """

    title: str
    subtitle: str
    metrics: Mapping[str, float]
    bars: Mapping[str, Bar]
    passed: bool
    notes: Sequence[str] = ()
    pairs: Sequence[Pair] = ()
    pairs_total: int = 0
    control: Control = CONTROLS["grounding"]
    previews: Sequence[tuple[int, Image.Image]] = ()
    start: Mapping[str, Any] = field(default_factory=dict)
    loss: Sequence[Series] = ()
    gauges: Mapping[str, Sequence[Series]] = field(default_factory=dict)
    validation: Mapping[str, Sequence[Series]] = field(default_factory=dict)
    speed: Sequence[Series] = ()
    canvases: Sequence[Picture] = ()
    data_facts: Mapping[str, Any] = field(default_factory=dict)
    registration: Mapping[str, Any] = field(default_factory=dict)
    lineage: Sequence[Lineage] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""


def page(report: Report) -> str:
    """The page as HTML."""
    style = files("atelier.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    parts = [
        _header(report),
        _metrics(report),
        _pairs(report),
        _previews(report),
        _start(report),
        _curves(report),
        _canvases(report),
        _numbers(report),
        _lineage(report),
        _places(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(report.title)}</title>\n<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _header(report: Report) -> str:
    verdict = ""
    if report.bars:
        kind, words = ("good", "passed its bars") if report.passed else ("bad", "misses its bars")
        verdict = f'<span class="pill {kind}">{words}</span>'
    registration = ""
    if report.registration.get("version"):
        aliases = report.registration.get("aliases") or []
        aliases = [aliases] if isinstance(aliases, str) else aliases
        registration = (
            f"<p>Registered as <b>{_text(report.registration.get('name', ''))}</b> version"
            f" {_text(report.registration['version'])}{' · ' + _text(', '.join(aliases)) if aliases else ''}</p>"
        )
    return f"<header><h1>{_text(report.title)}{verdict}</h1><p>{_text(report.subtitle)}</p>{registration}</header>"


def _metrics(report: Report) -> str:
    """A card for each metric that has a bar; without bars, for each share."""
    names = list(report.bars) or [name for name in report.metrics if not name.endswith("_ungrounded")][:4]
    cards = []
    for name in names:
        value = report.metrics.get(name)
        if value is None:
            cards.append(f'<div class="metric"><span class="name">{_text(name)}</span><b class="bad">missing</b></div>')
            continue
        bar, control = report.bars.get(name), report.metrics.get(f"{name}_ungrounded")
        verdict, told = "", _plain if name in LOWER_IS_BETTER else _share
        if bar is not None:
            verdict = f'<span class="verdict {"good" if bar.met(value) else "bad"}">{_verdict(bar, value, told)}</span>'
        tick = None if bar is None else bar.min if bar.min is not None else bar.max
        track = meter(value, tick, control) if name not in LOWER_IS_BETTER and 0 <= value <= 1 else ""
        notes = [MEANINGS.get(name, "")]
        if control is not None:
            notes.append(f"{report.control.without} {told(control)}")
        cards.append(
            f'<div class="metric">{verdict}<span class="name">{_text(name)}</span><b>{told(value)}</b>{track}'
            f'<span class="note">{_text(" · ".join(note for note in notes if note))}</span></div>'
        )
    below = "".join(f"<p>{_text(note)}</p>" for note in report.notes)
    return (f'<div class="metrics">{"".join(cards)}</div>' if cards else "") + below


def _verdict(bar: Bar, value: float, told: Callable[[float], str]) -> str:
    """How a value stands to the bound that it breaks, or to all of them; ``told`` writes a number."""
    bounds = []
    if bar.min is not None:
        bounds.append((value >= bar.min, f"{'≥' if value >= bar.min else '&lt;'} {told(bar.min)}"))
    if bar.max is not None:
        bounds.append((value <= bar.max, f"{'≤' if value <= bar.max else '&gt;'} {told(bar.max)}"))
    return ", ".join(text for _, text in [bound for bound in bounds if not bound[0]] or bounds)


def _bounds(bar: Bar) -> str:
    both = (("≥", bar.min), ("≤", bar.max))
    return ", ".join(f"{sign} {bound:.4g}" for sign, bound in both if bound is not None)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.4g}"


def _section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2><p>{text}</p>{body}</section>" if body else ""


def _pairs(report: Report) -> str:
    cards = []
    for pair in report.pairs:
        cards.append(
            f'<div class="pair"><div><span>{picture(pair.grounded)}'
            f"<small>{_text(report.control.shown)}{_count(pair, pair.right)}</small></span>"
            f"<span>{picture(pair.ungrounded, asked=False)}"
            f"<small>{_text(report.control.beside)}{_count(pair, pair.right_ungrounded)}</small></span></div>"
            f"<p>{_text(pair.grounded.caption)}</p></div>"
        )
    text = _text(report.control.text.format(some=f"the first {len(report.pairs)} of {report.pairs_total:,}"))
    return _section("What it draws", text, f'<div class="pairs">{"".join(cards)}</div>' if cards else "")


def _count(pair: Pair, right: int | None) -> str:
    if right is None:
        return ""
    boxes = len(pair.grounded.boxes)
    return f' <span class="{"good" if right == boxes else "bad"}">{right} of {boxes} right</span>'


def _previews(report: Report) -> str:
    shown = [
        f'<figure><img src="{data_uri(image, most=420)}" alt="samples at step {step}">'
        f"<figcaption>step {step:,}</figcaption></figure>"
        for step, image in report.previews
    ]
    wide = any(image.size[0] > 1.6 * image.size[1] for _, image in report.previews)
    return _section(
        "While it learned",
        "The same layouts and seeds, sampled during training.",
        f'<div class="previews" style="--preview:{"340px" if wide else "180px"}">{"".join(shown)}</div>'
        if shown
        else "",
    )


#: What became of a key of either model, as ``start.json`` names it, and how many keys are shown.
FATES = {
    "taken": "taken over",
    "misshapen": "of another shape there, begun afresh",
    "fresh": "not there, begun afresh",
    "unused": "there, with no place here",
}
KEYS = 400


def _start(report: Report) -> str:
    if not report.start:
        return ""
    rows = []
    for kind, meaning in FATES.items():
        keys = list(report.start.get(kind, ()))
        listed = "<br>".join(f"<code>{_text(key)}</code>" for key in keys[:KEYS])
        more = f"<br>and {len(keys) - KEYS:,} more" if len(keys) > KEYS else ""
        names = f"<details><summary>which</summary>{listed}{more}</details>" if keys else ""
        rows.append(f'<tr><td>{meaning}</td><td class="number">{len(keys):,}</td><td>{names}</td></tr>')
    head = f"<tr><th>parameters</th>{_heads('keys')}<th></th></tr>"
    return _section(
        "What it began with",
        f"{_share(float(report.start['share']))} of its numbers are those of"
        f" <code>{_text(report.start['origin'])}</code>; the optimizer, the step and the data order are new.",
        f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>',
    )


def _curves(report: Report) -> str:
    charts = [chart("loss", report.loss, "step", logarithmic=True, smooth=True)]
    charts += [chart(name, series, "step", from_zero=True) for name, series in report.validation.items()]
    charts += [chart(name, series, "step") for name, series in report.gauges.items()]
    charts.append(chart("samples per second", report.speed, "step", from_zero=True))
    body = "".join(charts)
    said = ["Loss as logged, faint, with its moving average."]
    if report.validation:
        said.append("Validation reads the previews' pixels, without a judge.")
    if any(name.startswith(GATES) for name in report.gauges):
        said.append("A gate is tanh(α) of a block: how far the block lets the boxes in.")
    return _section(
        "Curves",
        " ".join(said),
        f'<div class="charts">{body}</div>' if body else "",
    )


def _canvases(report: Report) -> str:
    cards = [f'<div class="single">{picture(shown)}<p>{_text(shown.caption)}</p></div>' for shown in report.canvases]
    facts = ", ".join(f"{_text(name)} {_plain(value)}" for name, value in report.data_facts.items())
    boxed = any(shown.boxes for shown in report.canvases)
    return _section(
        "What it learned from",
        f"Of the training data, with {'boxes, phrases and captions' if boxed else 'their captions'}."
        f"{' ' + facts + '.' if facts else ''}",
        f'<div class="singles">{"".join(cards)}</div>' if cards else "",
    )


def _numbers(report: Report) -> str:
    rows = []
    for name, value in report.metrics.items():
        if name.endswith("_ungrounded") and name.removesuffix("_ungrounded") in report.metrics:
            continue
        control, bar = report.metrics.get(f"{name}_ungrounded"), report.bars.get(name)
        rows.append(
            f'<tr><td>{_text(name)}</td><td class="number">{value:.4g}</td>'
            f'<td class="number">{"" if control is None else f"{control:.4g}"}</td>'
            f'<td class="number">{"" if bar is None else _bounds(bar)}</td></tr>'
        )
    head = "<tr><th>metric</th>" + _heads("value", report.control.without, "bar") + "</tr>"
    return _section("Numbers", "", f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>' if rows else "")


def _lineage(report: Report) -> str:
    rows = []
    for item in report.lineage:
        params = ", ".join(f"{name}={_plain(value)}" for name, value in item.params.items() if value != "")
        notes = ", ".join(f"{name} {_plain(value)}" for name, value in item.notes.items())
        rows.append(
            f"<tr><td><b>{_text(item.step)}</b><br><small>{_text(item.kind)}</small></td>"
            f"<td class='short'><code>{_text(item.digest.removeprefix('sha256:')[:12])}</code></td>"
            f"<td class='short'><code>{_text(item.key[:12])}</code></td>"
            f"<td class='short'><code>{_text(item.code[:12])}</code></td>"
            f'<td class="number">{item.seconds:,.1f} s</td><td class="number">{item.files:,}</td>'
            f'<td class="number">{_size(item.bytes)}</td><td>{_text(", ".join(item.inputs))}</td>'
            f"<td><code>{_text(params)}</code>{f'<br><code>{_text(notes)}</code>' if notes else ''}</td></tr>"
        )
    head = (
        "<tr><th>step</th><th>digest</th><th>key</th><th>code</th>"
        + _heads("time", "files", "size")
        + "<th>from</th><th>parameters, notes</th></tr>"
    )
    versions = " · ".join(f"{_text(name)} {_text(version)}" for name, version in report.versions.items())
    commit = (
        f" · commit {_text(report.commit[:12])}{'+' if report.commit.endswith('+') else ''}" if report.commit else ""
    )
    return _section(
        "Where everything came from",
        "Every step's output is addressed by what made it: its key is the digest of the step's code, parameters and"
        f" inputs. {versions}{commit}",
        f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>' if rows else "",
    )


def _places(report: Report) -> str:
    rows = "".join(
        f"<tr><th>{_text(item.step)}</th><td><code>{_text(item.uri)}</code></td></tr>" for item in report.lineage
    )
    return _section("Where it lies", "", f'<div class="scroll"><table>{rows}</table></div>' if rows else "")


def _heads(*names: str) -> str:
    return "".join(f'<th class="number">{_text(name)}</th>' for name in names)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "…"


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
