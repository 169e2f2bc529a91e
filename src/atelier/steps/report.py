"""Report: the run's page, gathered from the manifests and files of the steps before it."""

import json
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from atelier.errors import AtelierError, DataError
from atelier.evaluation import bars
from atelier.evaluation.control import CONTROLS
from atelier.evaluation.figures import Picture, Series, open_image
from atelier.evaluation.report import GATES, Lineage, Pair, Report, page
from atelier.steps.artifact import Artifact
from atelier.steps.canvases import canvases, word
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.digest import sha256_bytes
from atelier.storage.inputs import InputFolder
from atelier.storage.manifest import Manifest

VERSION = 1
PAIRS, PREVIEWS, CANVASES = 24, 8, 12
START = "start.json"


def run(
    *,
    raw: Manifest,
    base: Manifest,
    shards: Manifest,
    training: Manifest,
    model: Manifest,
    samples: Manifest,
    evaluation: Manifest,
    registration: Manifest,
    title: str,
    artifacts: str,
) -> Manifest:
    """Writes ``report.html``, one self-contained page; returns a manifest of kind ``report``.

    Raises:
        DataError: an input lacks a file that the page is made of.
    """
    inputs = {
        "raw": raw,
        "base": base,
        "shards": shards,
        "training": training,
        "model": model,
        "samples": samples,
        "evaluation": evaluation,
        "registration": registration,
    }

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        text = page(gather(inputs, ctx.inputs, title))
        (ctx.out.path / "report.html").write_text(text, encoding="utf-8")
        return "report", {"title": title, "bytes": len(text.encode())}

    style = sha256_bytes(files("atelier.evaluation").joinpath("report.css").read_bytes())
    return run_step(
        name="report",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs=inputs,
        params={"title": title, "style": style},
        artifacts=artifacts,
    )


def publish_page(artifact: Artifact, manifest: Manifest) -> None:
    """Copies the page into a KFP ``HTML`` artifact, which the Kubeflow page shows."""
    Path(artifact.path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(InputFolder(manifest).fetch("report.html"), artifact.path)


def gather(manifests: dict[str, Manifest], folders: dict[str, InputFolder], title: str) -> Report:
    """Everything the page shows, from the steps' outputs."""
    judged = _json(folders["evaluation"].fetch("metrics.json"))
    entries = _json(folders["samples"].fetch("samples.json"))
    entries = entries["samples"] if isinstance(entries, dict) else entries
    training, lineage = manifests["training"], _lineage(manifests)
    control = CONTROLS[manifests["samples"].metadata.get("control", "grounding")]
    logged = _lines(folders["training"], "metrics.jsonl")
    losses = sorted({key for line in logged for key in line if key == "loss" or key.startswith("loss")})
    return Report(
        title=title,
        subtitle=_subtitle(manifests, logged),
        metrics={name: float(value) for name, value in judged["metrics"].items() if isinstance(value, int | float)},
        bars=bars.read(judged.get("bars", {})),
        passed=bool(judged.get("passed")),
        notes=[
            *(f"{name}: not measured, {why}" for name, why in judged.get("skipped", {}).items()),
            *judged.get("warnings", []),
        ],
        pairs=[
            _pair(folders["samples"], entry, verdict)
            for entry, verdict in zip(entries[:PAIRS], [*judged.get("per_sample", []), *([{}] * PAIRS)], strict=False)
        ],
        pairs_total=len(entries),
        control=control,
        previews=list(_previews(folders["training"])),
        start=_start(folders["training"]),
        loss=[_series(key, logged) for key in losses],
        gauges=_gauges(_lines(folders["training"], "gauges.jsonl")),
        validation=_validation(_lines(folders["training"], "validation.jsonl"), control.without),
        speed=[_series("samples_per_s", logged)],
        canvases=canvases(folders["raw"], CANVASES, manifests["shards"]),
        data_facts=_data_facts(manifests["shards"]),
        registration=manifests["registration"].metadata,
        lineage=lineage,
        versions=training.made_by.get("versions", {}),
        commit=str(training.made_by.get("commit", "")),
    )


def _subtitle(manifests: dict[str, Manifest], logged: list[dict[str, Any]]) -> str:
    params = manifests["training"].made_by.get("params", {})
    seconds = float(manifests["training"].made_by.get("seconds", 0.0))
    parts = (
        [f"recipe {params['recipe']}, profile {params['profile']}"] if {"recipe", "profile"} <= params.keys() else []
    )
    if logged:
        parts.append(f"{int(logged[-1].get('step', 0)):,} training steps in {seconds / 60:.1f} min")
    if "samples" in manifests["shards"].metadata:
        parts.append(f"{manifests['shards'].metadata['samples']:,} training pictures")
    counts = manifests["training"].metadata.get("parameters") or {}
    if {"trainable", "frozen"} <= counts.keys():
        parts.append(
            f"{counts['trainable'] / 1e6:.2f} M trained parameters"
            + (f" on {counts['frozen'] / 1e6:.2f} M frozen ones" if round(counts["frozen"] / 1e6, 2) else "")
        )
    return " · ".join(parts)


def _pair(folder: InputFolder, entry: dict[str, Any], verdict: dict[str, Any]) -> Pair:
    """A sample, its control, and how many of their boxes the judge read right."""

    def right(read: str) -> int | None:
        if read not in verdict or not entry.get("labels"):
            return None
        return sum(seen == asked for seen, asked in zip(verdict[read], entry["labels"], strict=True))

    def shown(which: str) -> Picture:
        return Picture(
            open_image(folder.fetch(entry[which])),
            entry["boxes"],
            [word(phrase) for phrase in entry["phrases"]],
            entry["prompt"],
        )

    return Pair(shown("grounded"), shown("ungrounded"), right("read"), right("read_ungrounded"))


def _previews(folder: InputFolder) -> Iterator[tuple[int, Image.Image]]:
    names = sorted(folder.names("previews/step-*.png"))
    # Evenly spread, the first and the last among them.
    places = {round(index * (len(names) - 1) / max(PREVIEWS - 1, 1)) for index in range(PREVIEWS)} if names else set()
    for place in sorted(places):
        step = int(Path(names[place]).stem.rpartition("-")[2])
        yield step, open_image(folder.fetch(names[place]))


def _start(folder: InputFolder) -> dict[str, Any]:
    """The account of what the training began with; {} where it began by itself."""
    found: dict[str, Any] = _json(folder.fetch(START)) if START in folder.names() else {}
    return found


def _lines(folder: InputFolder, name: str) -> list[dict[str, Any]]:
    if name not in folder.names():
        return []
    return [json.loads(line) for line in folder.fetch(name).read_text(encoding="utf-8").splitlines() if line.strip()]


def _series(key: str, logged: list[dict[str, Any]]) -> Series:
    kept = [line for line in logged if isinstance(line.get(key), int | float) and "step" in line]
    return Series(key, [float(line["step"]) for line in kept], [float(line[key]) for line in kept])


_GAUGES = {"out": "last matrices of the fusers, root mean square"}
"""Charts of gauges that are no gates, by their keys' last part."""


def _gauges(logged: list[dict[str, Any]]) -> dict[str, list[Series]]:
    """A chart for each kind of gauge: ``mid_block.0.attn`` and ``down_blocks.1.0.attn`` share the chart "attn"."""
    keys = sorted({key for line in logged for key in line if key not in ("step", "time", "seconds")})
    charts: dict[str, list[Series]] = {}
    for key in keys:
        block, dot, kind = key.rpartition(".")
        line = _series(key, logged)
        name = _GAUGES.get(kind, f"{GATES}, {kind}") if dot else key
        charts.setdefault(name, []).append(Series(_short(block or key), line.x, line.y))
    return charts


def _validation(logged: list[dict[str, Any]], without: str) -> dict[str, list[Series]]:
    """A chart for each metric, its ungrounded control as the second line."""
    charts: dict[str, list[Series]] = {}
    for key in sorted({key for line in logged for key in line if key != "step"}):
        name = key.removesuffix("_ungrounded")
        line = _series(key, logged)
        charts.setdefault(f"{name}, while training", []).append(
            Series("grounded" if key == name else without, line.x, line.y)
        )
    return charts


def _short(block: str) -> str:
    """``down_blocks.1.attentions.0.transformer_blocks.0`` as ``down 1 0 0``."""
    words = [word.removesuffix("_blocks").removesuffix("_block") for word in block.split(".")]
    return " ".join(word for word in words if word not in ("attentions", "transformer"))


_COUNTED = {
    "captions_cut": "captions cut",
    "pictures_unsized": "pictures without a size beside them",
    "descriptions_cut": "descriptions cut",
    "regions_left_out": "regions left out",
    "pictures_limited": "pictures of too many region tokens",
}
"""What encoders count of their samples, as it is called."""


def _data_facts(shards: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if "samples" in shards.metadata:
        facts["samples"] = shards.metadata["samples"]
    quarantined = shards.metadata.get("quarantined") or {}
    facts["quarantined"] = sum(quarantined.values())
    facts |= {f"of these “{reason}”": count for reason, count in quarantined.items()}
    facts |= {f"filtered out: {reason}": count for reason, count in (shards.metadata.get("filtered") or {}).items()}
    counts = shards.metadata.get("counts", {})
    if tokens := counts.get("region_tokens"):
        facts["region tokens a picture"] = round(tokens / max(shards.metadata.get("samples", 0), 1))
    return facts | {name: counts[key] for key, name in _COUNTED.items() if counts.get(key)}


def _lineage(manifests: dict[str, Manifest]) -> list[Lineage]:
    """Every step that the inputs reach, in the order of their making."""
    found: dict[str, Lineage] = {}

    def visit(manifest: Manifest) -> None:
        made = manifest.made_by
        if manifest.uri in found:
            return
        names = []
        for name, origin in made.get("inputs", {}).items():
            try:
                before = Manifest.load(origin["uri"])
            except AtelierError:
                # Collected since: the lineage ends at its name and digest.
                names.append(f"{name} {str(origin['digest']).removeprefix('sha256:')[:8]}")
                continue
            visit(before)
            names.append(str(before.made_by.get("step", name)))
        found[manifest.uri] = Lineage(
            step=str(made.get("step", manifest.kind)),
            kind=manifest.kind,
            uri=manifest.uri,
            digest=manifest.digest,
            key=str(made.get("key", "")),
            code=str(made.get("code", "")),
            seconds=float(made.get("seconds", 0.0)),
            files=len(manifest.files),
            bytes=manifest.total_bytes,
            params=made.get("params", {}),
            inputs=names,
            notes=made.get("notes", {}),
        )

    for name in ("raw", "base", "shards", "training", "model", "samples", "evaluation", "registration"):
        visit(manifests[name])
    return list(found.values())


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is no JSON: {error}", "remove its folder and run again: the step makes it anew"
        ) from error
