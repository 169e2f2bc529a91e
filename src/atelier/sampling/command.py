"""``atelier sample``: pictures from a model's folder, a prompt and boxes. Imports torch only when it runs."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import ConfigError
from atelier.progress import Progress
from atelier.sampling.requests import PRESETS, Request, parse_box, read_requests
from atelier.storage.atomic import replace_file

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Settings:
    """How the pictures are drawn: pipeline arguments that all of them share."""

    steps: int
    guidance: float
    beta: float
    decay: float
    size: tuple[int, int] | None
    grounded: bool
    batch: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", type=Path, help="folder of a GLIGEN or Rich-context model (diffusers layout)")
    parser.add_argument("--prompt", help="the caption")
    parser.add_argument(
        "--box", action="append", default=[], metavar="X0,Y0,X1,Y1=PHRASE", help="shares of the picture; many times"
    )
    parser.add_argument(
        "--layouts", type=Path, metavar="FILE", help="JSON lines: prompt, boxes, phrases, negative, seed"
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), help="a README's example with its settings")
    parser.add_argument("--out", type=Path, required=True, help="x.png for one picture, else a folder")
    parser.add_argument("--negative", help="what the pictures shall not show")
    parser.add_argument("--count", type=int, default=1, help="pictures a layout, of seeds SEED, SEED + 1, …")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", metavar="WxH", help="in pixels; default: the model's own")
    parser.add_argument("--steps", type=int, help="denoising steps (50)")
    parser.add_argument("--guidance", type=float, help="classifier-free guidance (7.5; SDXL 5)")
    parser.add_argument("--beta", type=float, help="share of the steps that are grounded (0.3; Rich-context 1)")
    parser.add_argument(
        "--decay", type=float, default=0.0, help="share of the steps over which grounding fades out (0)"
    )
    parser.add_argument("--ungrounded", action="store_true", help="the same without grounding: the control")
    parser.add_argument("--draw-boxes", action="store_true", help="draw the boxes on the pictures themselves too")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once")
    parser.add_argument("--device", default="", help="default: cuda where there is one, else cpu")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16 on cuda, else float32"
    )


def run(arguments: argparse.Namespace) -> int:
    """Draws what is asked for and prints where it is.

    Raises:
        ConfigError: arguments that do not go together, a model or a layout that cannot be used.
        StorageError: the output cannot be written.
    """
    for name in ("count", "batch", "steps"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise ConfigError(f"--{name} is {value}", "use at least 1")
    requests = _requests(arguments)
    single = arguments.out.suffix.lower() == ".png"
    if single and len(requests) != 1:
        raise ConfigError(f"--out {arguments.out} is one file, {len(requests)} pictures are asked for", "give a folder")
    size = parse_size(arguments.size) if arguments.size else None

    import torch

    from atelier.sampling.drawing import draw_boxes, sheet
    from atelier.sampling.folder import open_pipeline

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = arguments.dtype or ("float16" if device.startswith("cuda") else "float32")
    pipeline = open_pipeline(arguments.model, getattr(torch, dtype)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    preset = PRESETS.get(arguments.preset or "")
    settings = Settings(
        steps=arguments.steps or (preset.steps if preset else 50),
        guidance=_first(
            arguments.guidance, preset.guidance if preset else None, 5.0 if hasattr(pipeline, "tokenizer_2") else 7.5
        ),
        beta=_first(arguments.beta, preset.beta if preset else None, pipeline.default_beta),
        decay=arguments.decay,
        size=size,
        grounded=not arguments.ungrounded,
        batch=arguments.batch,
    )
    drawn = []
    for number, (request, image) in enumerate(zip(requests, draw(pipeline, requests, settings), strict=True)):
        boxed = draw_boxes(image, request.boxes, request.phrases)
        path = arguments.out if single else arguments.out / f"{number:04d}.png"
        _save(boxed if arguments.draw_boxes else image, path, request, settings)
        drawn.append(boxed)
    if not single:
        _save(sheet(drawn), arguments.out / "sheet.png")
    print(arguments.out if single else f"{len(drawn)} pictures and sheet.png in {arguments.out}")
    return 0


def draw(pipeline: Any, requests: Sequence[Request], settings: Settings) -> Iterator["Image.Image"]:
    """The requests' pictures in their order, drawn in batches; each from its own seed, whatever the batch."""
    import torch

    batches = _batches(requests, settings.batch)
    progress = Progress("sampling", len(batches) * settings.steps, "steps")
    size = {} if settings.size is None else {"width": settings.size[0], "height": settings.size[1]}
    for number, batch in enumerate(batches):
        begun = number * settings.steps

        def step(_: Any, done: int, __: Any, ___: dict[str, Any], begun: int = begun) -> dict[str, Any]:
            progress.to(begun + min(done + 1, settings.steps))
            return {}

        yield from pipeline(
            [request.prompt for request in batch],
            negative_prompt=[request.negative for request in batch] if batch[0].negative else None,
            **(_layouts(pipeline, batch, settings) if settings.grounded else {}),
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=[torch.Generator().manual_seed(request.seed or 0) for request in batch],
            callback_on_step_end=step,
            **size,
        ).images


def _layouts(pipeline: Any, batch: Sequence[Request], settings: Settings) -> dict[str, Any]:
    boxes, phrases = [request.boxes for request in batch], [request.phrases for request in batch]
    given: dict[str, Any] = pipeline.layout_arguments(boxes, phrases, beta=settings.beta, decay=settings.decay)
    return given


def _batches(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Runs of at most ``size`` requests, all with a negative prompt or all without.

    SDXL takes zeros for no negative prompt, which no text gives: mixed, a picture would depend on its neighbours.
    """
    runs = [list(run) for _, run in groupby(requests, key=lambda request: bool(request.negative))]
    return [run[begin : begin + size] for run in runs for begin in range(0, len(run), size)]


def parse_size(text: str) -> tuple[int, int]:
    """Width and height from ``"768x512"``.

    Raises:
        ConfigError: not two multiples of 8.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 and int(part) % 8 == 0 for part in parts):
        raise ConfigError(f"--size {text} is not a picture's size", "write WIDTHxHEIGHT, multiples of 8: 768x512")
    return int(parts[0]), int(parts[1])


def _requests(arguments: argparse.Namespace) -> list[Request]:
    given = [name for name in ("prompt", "layouts", "preset") if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{' and '.join(f'--{name}' for name in given) or 'no prompt'} given",
            "give one of --prompt, --layouts and --preset",
        )
    if arguments.box and given != ["prompt"]:
        raise ConfigError(f"--box with --{given[0]}", "boxes on the command line go with --prompt")
    if given == ["prompt"]:
        boxes = [parse_box(text) for text in arguments.box]
        requests = [Request(arguments.prompt, [box for box, _ in boxes], [phrase for _, phrase in boxes])]
    elif given == ["preset"]:
        requests = [PRESETS[arguments.preset].request]
    else:
        requests = read_requests(arguments.layouts)
    if arguments.negative is not None:
        requests = [replace(request, negative=arguments.negative) for request in requests]
    return [
        replace(request, seed=(arguments.seed if request.seed is None else request.seed) + number)
        for request in requests
        for number in range(arguments.count)
    ]


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _save(image: "Image.Image", path: Path, request: Request | None = None, settings: Settings | None = None) -> None:
    """Writes a PNG that carries what it was drawn from."""
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    if request is not None and settings is not None:
        note.add_text("atelier", json.dumps(asdict(request) | asdict(settings), ensure_ascii=True))
    with replace_file(path) as temporary:
        image.save(temporary, format="png", pnginfo=note)
