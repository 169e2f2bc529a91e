"""``atelier geneval``: GenEval's scores of a CrossFlow by a detector of the user's choice."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from atelier.sampling.text_drawing import Drawing, add_drawing_arguments, share

if TYPE_CHECKING:
    from atelier.evaluation.geneval.objects import ObjectFinder


def add_geneval_arguments(parser: argparse.ArgumentParser) -> None:
    """``geneval``'s arguments."""
    add_drawing_arguments(parser)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="evaluation_metadata.jsonl")
    parser.add_argument(
        "--detector",
        required=True,
        metavar="MODEL",
        help="folder or id: Mask2Former or DETR of COCO's classes, Grounding DINO, OWL-ViT …",
    )
    parser.add_argument("--clip", default="", metavar="MODEL", help="reads colours: openai/clip-vit-large-patch14")
    parser.add_argument("--each", type=int, default=4, help="pictures a prompt (4)")
    parser.add_argument("--confidence", type=float, default=0.3, help="least score of an object (0.3)")
    parser.add_argument("--counting", type=float, default=0.9, help="the same for prompts that count (0.9)")


def geneval(arguments: argparse.Namespace, open_finder: "Callable[[str], ObjectFinder]") -> int:
    """See ``evaluation.evaluate``. Under torchrun every process draws its share, and the first judges.

    Args:
        open_finder: a detector by its folder or id.

    Raises:
        AtelierError: as there.
    """
    from atelier.evaluation.clip_score import ClipScore
    from atelier.evaluation.geneval.colours import ClipColours
    from atelier.evaluation.geneval.evaluation import PAGE, RESULT, check, draw, evaluate
    from atelier.evaluation.geneval.rules import Thresholds
    from atelier.evaluation.geneval.tasks import read_tasks

    tasks = read_tasks(arguments.prompts)
    drawing = Drawing.of(arguments)
    if share()[0]:  # the others need neither detector nor CLIP
        draw(arguments.out, drawing, tasks, arguments.seed, arguments.each)
        return 0
    finder = open_finder(arguments.detector)
    check(tasks, finder, bool(arguments.clip))
    colours = ClipColours(ClipScore(arguments.clip)) if arguments.clip else None
    pictures = draw(arguments.out, drawing, tasks, arguments.seed, arguments.each)
    thresholds = Thresholds(arguments.confidence, arguments.counting)
    result = evaluate(arguments.out, tasks, pictures, finder, colours, thresholds, arguments.batch)
    for name, value in result["metrics"].items():
        print(f"{name} {value:.4f}")
    for tag, kinds in result["failures"].items():
        if kinds:
            print(f"{tag}: " + ", ".join(f"{kind} in {count}" for kind, count in kinds.items()))
    print(f"{len(pictures):,} pictures, {RESULT} and {PAGE} in {arguments.out}")
    return 0
