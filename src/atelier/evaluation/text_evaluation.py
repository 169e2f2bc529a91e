"""FID and CLIP score of a text-to-image model: pictures of prompts are drawn, measured and put on a page."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.evaluation import gaussian, text_images, text_page, text_parts
from atelier.evaluation.clip_score import ClipScore
from atelier.evaluation.inception_features import ENOUGH, open_inception, statistics_of_folder, warn_of_few
from atelier.evaluation.yardsticks import Yardsticks
from atelier.models.inception import FEATURES, FidInception
from atelier.sampling.text_drawing import Drawing, share
from atelier.storage.atomic import os_errors, write_bytes, write_json
from atelier.storage.cache import fetched
from atelier.storage.digest import sha256_file
from atelier.storage.state import state_of_model
from atelier.storage.uri import local_path

RESULT, PAGE = "evaluation.json", "evaluation.html"


class _Opened:
    """The networks and the reference, opened before anything is drawn: what is wrong with them is said at once."""

    def __init__(self, given: Yardsticks, batch: int, first: bool) -> None:
        self.network: FidInception | None = None
        self.reference: gaussian.Gaussian | None = None
        self.digest = ""
        if given.fid_weights:
            weights = fetched(given.fid_weights)
            self.network, self.digest = open_inception(weights), sha256_file(weights)
            if given.fid_statistics:
                self.reference = gaussian.read(fetched(given.fid_statistics), FEATURES)
            elif first:  # the other processes hand on moments only
                self.reference = statistics_of_folder(local_path(given.fid_images), weights, self.network, batch)
        self.clip = ClipScore(given.clip) if given.clip else None


def evaluate(
    out: Path, drawing: Drawing, prompts: Sequence[str], yardsticks: Yardsticks, seed: int = 0
) -> dict[str, Any] | None:
    """Draws a picture a prompt, measures them, and writes ``evaluation.json`` and ``evaluation.html``.

    Under torchrun every process takes its share, and the first writes. What an interrupted evaluation drew or measured
    is taken over.

    Returns:
        what ``evaluation.json`` holds; None but in the first process.

    Raises:
        ConfigError: a model, weights, statistics or prompts that do not fit.
        DataError: a file that is not what it should be. StorageError: the folder cannot be written.
    """
    yardsticks.check()
    if not prompts:
        raise ConfigError("there is no prompt", "give at least two")
    rank, world = share()
    with os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    opened = _Opened(yardsticks, drawing.batch, rank == 0)
    settled = text_images.settle(out, drawing)
    pictures = text_images.wanted(prompts, seed)
    mine = pictures[rank::world]
    text_images.draw(out, drawing, mine)
    clip = (yardsticks.clip, state_of_model(yardsticks.clip))
    key = text_parts.key_of(pictures, settled["model"], json.dumps(settled), opened.digest, *clip)
    parts = text_parts.Share(out, key, rank, world)
    parts.measured(mine, opened.network, opened.clip, drawing.batch)
    if rank:
        return None
    result = _result(parts.together(), opened, yardsticks, settled | {"seed": seed, "pictures": len(pictures)})
    write_json(out / RESULT, result)
    write_bytes(out / PAGE, text_page.page(out, result, pictures).encode())
    return result


def _result(
    measured: text_parts.Measured, opened: _Opened, given: Yardsticks, settings: dict[str, Any]
) -> dict[str, Any]:
    metrics: dict[str, float] = {}
    warnings: list[str] = []
    if opened.reference is not None:
        if measured.count < ENOUGH:
            warn_of_few(measured.count, warnings.append)
        distance = gaussian.frechet_distance(measured.moments.gaussian(), opened.reference)
        metrics["fid"] = round(distance, 4)
    if opened.clip is not None:
        metrics["clip_score"] = round(measured.clip_sum / measured.count, 5)
    for line in warnings:
        print(line, flush=True)
    reference = given.fid_statistics or given.fid_images
    return {
        "metrics": metrics,
        "skipped": given.skipped,
        "warnings": warnings,
        "settings": settings,
        "yardsticks": {"fid_weights": opened.digest, "fid_reference": reference, "clip": given.clip},
    }
