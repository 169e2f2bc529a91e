"""``atelier paint``, ``interpolate`` and ``arithmetic``: pictures by a CrossFlow. Imports torch when it runs.

Under torchrun each process draws its share of the prompts; a picture depends on its prompt and seed alone, so the
files are the same however many draw.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import ConfigError
from atelier.progress import Progress
from atelier.sampling.requests import Request, prompt_requests
from atelier.sampling.text_drawing import Drawing, add_drawing_arguments, check_seed, share
from atelier.storage.atomic import replace_file

if TYPE_CHECKING:
    from PIL import Image

GIF_MS = 80
"""How long a GIF shows a picture."""


def add_paint_arguments(parser: argparse.ArgumentParser) -> None:
    """``paint``'s arguments."""
    add_drawing_arguments(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given many times")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, or .jsonl with prompt and seed")
    parser.add_argument("--count", type=int, default=1, help="pictures a prompt, of seeds SEED, SEED + 1, …")


def add_interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    """``interpolate``'s arguments."""
    add_drawing_arguments(parser)
    parser.add_argument("first", help="the prompt at the beginning")
    parser.add_argument("last", help="the prompt at the end")
    parser.add_argument("--number", type=int, default=9, help="pictures, both ends included (9)")


def add_arithmetic_arguments(parser: argparse.ArgumentParser) -> None:
    """``arithmetic``'s arguments."""
    add_drawing_arguments(parser)
    parser.add_argument("prompt", help="what is added to and removed from")
    parser.add_argument("--add", action="append", default=[], metavar="TEXT", help="may be given many times")
    parser.add_argument("--remove", action="append", default=[], metavar="TEXT", help="may be given many times")


def paint(arguments: argparse.Namespace) -> int:
    """One picture a prompt and seed, ``0000.png`` … in the prompts' order, and their sheet where one process draws all.

    Raises:
        ConfigError: no prompt, or a model that is none. DataError: a file that cannot be read as prompts.
        StorageError: the output cannot be written.
    """
    requests = _requests(arguments)
    for request in requests:
        check_seed(request.seed or 0)
    rank, world = share()
    mine = list(enumerate(requests))[rank::world]
    drawing = Drawing.of(arguments)
    pipeline = drawing.open()
    progress, drawn = Progress("sampling", len(mine), "pictures"), []
    for begin in range(0, len(mine), arguments.batch):
        batch = mine[begin : begin + arguments.batch]
        images = drawing.draw(pipeline, [request.prompt for _, request in batch], [r.seed or 0 for _, r in batch])
        for (number, request), image in zip(batch, images, strict=True):
            drawing.save(image, arguments.out / f"{number:04d}.png", prompt=request.prompt, seed=request.seed)
            drawn.append(image)
        progress.advance(len(batch))
    if world == 1 and len(drawn) > 1:
        from atelier.sampling.drawing import sheet

        drawing.save(sheet(drawn), arguments.out / "sheet.png")
    print(f"{len(drawn)} pictures in {arguments.out}")
    return 0


def interpolate(arguments: argparse.Namespace) -> int:
    """``0000.png`` … along the line between two prompts, ``strip.png`` and ``between.gif``.

    Raises:
        ConfigError: fewer than two pictures, or a model that is none. StorageError: the output cannot be written.
    """
    import torch

    check_seed(arguments.seed)
    drawing = Drawing.of(arguments)
    pipeline = drawing.open()
    generator = torch.Generator().manual_seed(arguments.seed)
    images = pipeline.interpolate(
        arguments.first, arguments.last, arguments.number, generator, **drawing.settings()
    ).images
    _write_series(images, drawing, arguments.out, "between", first=arguments.first, last=arguments.last)
    return 0


def arithmetic(arguments: argparse.Namespace) -> int:
    """A picture of every prompt and last of their sum: ``0000.png`` …, ``strip.png`` and ``sum.gif``.

    Raises:
        ConfigError: nothing to add or remove, or a model that is none. StorageError: the output cannot be written.
    """
    import torch

    check_seed(arguments.seed)
    drawing = Drawing.of(arguments)
    pipeline = drawing.open()
    generator = torch.Generator().manual_seed(arguments.seed)
    images = pipeline.arithmetic(
        arguments.prompt, arguments.add, arguments.remove, generator, **drawing.settings()
    ).images
    _write_series(
        images, drawing, arguments.out, "sum", prompt=arguments.prompt, add=arguments.add, remove=arguments.remove
    )
    return 0


def _write_series(images: "Sequence[Image.Image]", drawing: Drawing, out: Path, name: str, **said: Any) -> None:
    for number, image in enumerate(images):
        drawing.save(image, out / f"{number:04d}.png", **said)
    drawing.save(strip(images), out / "strip.png", **said)
    with replace_file(out / f"{name}.gif") as scratch:
        images[0].save(
            scratch, format="gif", save_all=True, append_images=images[1:], duration=GIF_MS, loop=0, disposal=2
        )
    print(f"{len(images)} pictures, strip.png and {name}.gif in {out}")


def strip(images: "Sequence[Image.Image]") -> "Image.Image":
    """The pictures side by side."""
    from PIL import Image

    width, height = images[0].size
    made = Image.new("RGB", (width * len(images), height))
    for number, image in enumerate(images):
        made.paste(image, (number * width, 0))
    return made


def _requests(arguments: argparse.Namespace) -> list[Request]:
    if bool(arguments.prompt) == (arguments.prompts is not None):
        raise ConfigError(
            "both --prompt and --prompts given" if arguments.prompt else "no prompt given",
            "give --prompt (many times), or --prompts FILE",
        )
    if arguments.count < 1:
        raise ConfigError(f"--count is {arguments.count}", "use at least 1")
    if arguments.prompts is None:
        requests = [Request(prompt) for prompt in arguments.prompt]
    else:
        requests = prompt_requests(arguments.prompts)
    return [
        Request(request.prompt, seed=(arguments.seed if request.seed is None else request.seed) + number)
        for request in requests
        for number in range(arguments.count)
    ]
