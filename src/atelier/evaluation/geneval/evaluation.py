"""GenEval of a model: four pictures a prompt are drawn, looked through by a detector, and scored."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError
from atelier.evaluation import text_images, text_page
from atelier.evaluation.geneval.objects import ColourReader, ObjectFinder
from atelier.evaluation.geneval.rules import PUBLISHED, Thresholds, Verdict, judge
from atelier.evaluation.geneval.scores import scores
from atelier.evaluation.geneval.tasks import Task
from atelier.evaluation.inception_features import open_picture
from atelier.evaluation.text_images import Wanted
from atelier.progress import Progress
from atelier.sampling.text_drawing import Drawing, share
from atelier.storage.atomic import write_bytes, write_json

EACH = 4
RESULT, PAGE = "geneval.json", "geneval.html"


def check(tasks: Sequence[Task], finder: ObjectFinder, reads_colours: bool) -> None:
    """Refuses prompts that cannot be judged; before anything is drawn.

    Raises:
        ConfigError: the detector does not know a class, or a colour is asked for and nobody reads it.
    """
    finder.check(sorted({one.label for task in tasks for one in (*task.include, *task.exclude)}))
    if not reads_colours and any(one.colour for task in tasks for one in task.include):
        raise ConfigError("the prompts name colours and no CLIP was given to read them", "give --clip")


def draw(out: Path, drawing: Drawing, tasks: Sequence[Task], seed: int, each: int = EACH) -> list[Wanted]:
    """Draws ``each`` pictures of every prompt, as far as they are not there.

    Under torchrun every process draws its share, and the first waits for all.

    Raises:
        ConfigError: a folder of other pictures, or no model.
    """
    if each < 1:
        raise ConfigError(f"{each} pictures a prompt", "use at least 1; the published figures are of 4")
    text_images.settle(out, drawing)
    pictures = text_images.wanted([task.prompt for task in tasks], seed, each)
    rank, world = share()
    text_images.draw(out, drawing, pictures[rank::world])
    if rank == 0:
        text_images.wait(out, pictures)
    return pictures


def evaluate(
    out: Path,
    tasks: Sequence[Task],
    pictures: Sequence[Wanted],
    finder: ObjectFinder,
    colours: ColourReader | None,
    thresholds: Thresholds = PUBLISHED,
    batch: int = 8,
) -> dict[str, Any]:
    """Judges drawn pictures; writes ``geneval.json`` and ``geneval.html``.

    Args:
        pictures: of the tasks in their order, as many of each.
        colours: None where no prompt names a colour.

    Raises:
        ConfigError: see ``check``.
    """
    if len(pictures) % len(tasks):
        raise ConfigError(f"{len(pictures)} pictures of {len(tasks)} prompts", "draw as many of each")
    check(tasks, finder, colours is not None)
    each = len(pictures) // len(tasks)
    of = [task for task in tasks for _ in range(each)]
    verdicts: list[Verdict] = []
    lines: list[dict[str, Any]] = []
    progress = Progress("judging", len(pictures), "pictures")
    for begin in range(0, len(pictures), batch):
        own, chosen = of[begin : begin + batch], pictures[begin : begin + batch]
        images = [open_picture(one.path(out)) for one in chosen]
        labels = [[one.label for one in (*task.include, *task.exclude)] for task in own]
        for task, one, image, found in zip(own, chosen, images, finder.find(images, labels), strict=True):
            verdict = judge(task, found, partial(_read, colours, image), thresholds)
            verdicts.append(verdict)
            lines.append(_line(task, one, verdict))
        progress.advance(len(chosen))
    result = scores([task.tag for task in of], verdicts)
    result["metrics"] = {name: round(value, 4) for name, value in result["metrics"].items()}
    result |= {"skipped": {}, "warnings": [], "settings": asdict(thresholds) | {"pictures_a_prompt": each}}
    write_json(out / RESULT, result | {"per_picture": lines})
    write_bytes(out / PAGE, text_page.page(out, result, pictures, "GenEval").encode())
    return result


def _read(colours: ColourReader | None, image: Any, objects: Any) -> list[str]:
    assert colours is not None  # looked at before
    return colours.read(image, objects)


def _line(task: Task, one: Wanted, verdict: Verdict) -> dict[str, Any]:
    return {
        "number": one.number,
        "tag": task.tag,
        "prompt": task.prompt,
        "seed": one.seed,
        "correct": verdict.correct,
        "reasons": [sentence for _, sentence in verdict.reasons],
    }
