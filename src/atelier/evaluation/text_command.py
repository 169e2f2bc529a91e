"""``atelier evaluate-text``: FID and CLIP score of a CrossFlow on COCO's captions or a file of prompts."""

import argparse
from pathlib import Path

from atelier.errors import ConfigError
from atelier.sampling.text_drawing import Drawing, add_drawing_arguments


def add_evaluate_text_arguments(parser: argparse.ArgumentParser) -> None:
    """``evaluate-text``'s arguments."""
    add_drawing_arguments(parser)
    parser.add_argument(
        "--captions",
        type=Path,
        required=True,
        metavar="FILE",
        help="COCO's captions_val2014.json, or prompts: one a line, or .jsonl",
    )
    parser.add_argument("--count", type=int, default=0, help="pictures (30,000 of COCO's captions, or the whole file)")
    parser.add_argument("--fid-weights", default="", metavar="PLACE", help="pt_inception-2015-12-05-6726825d.pth")
    parser.add_argument("--fid-statistics", default="", metavar="PLACE", help="npz with mu and sigma to compare with")
    parser.add_argument("--fid-images", default="", metavar="FOLDER", help="in its place photographs, e.g. val2014")
    parser.add_argument("--clip", default="", metavar="MODEL", help="folder or id, e.g. openai/clip-vit-base-patch32")


def evaluate_text(arguments: argparse.Namespace) -> int:
    """See ``text_evaluation.evaluate``.

    Raises:
        AtelierError: as there.
    """
    if arguments.count < 0:
        raise ConfigError(f"--count is {arguments.count}", "use 0 for all, or a positive number")

    from atelier.evaluation.captions import read_prompts
    from atelier.evaluation.text_evaluation import PAGE, RESULT, evaluate
    from atelier.evaluation.yardsticks import Yardsticks

    yardsticks = Yardsticks(arguments.fid_weights, arguments.fid_statistics, arguments.fid_images, arguments.clip)
    yardsticks.check()
    prompts = read_prompts(arguments.captions, arguments.count, arguments.seed)
    result = evaluate(arguments.out, Drawing.of(arguments), prompts, yardsticks, arguments.seed)
    if result is not None:
        for name, value in result["metrics"].items():
            print(f"{name} {value:g}")
        for name, why in result["skipped"].items():
            print(f"{name}: not measured, {why}")
        print(f"{len(prompts):,} pictures, {RESULT} and {PAGE} in {arguments.out}")
    return 0
