"""``atelier paint``, ``interpolate`` and ``arithmetic``: pictures by a CrossFlow. Imports torch when it runs.

Under torchrun each process draws its share of the prompts; a picture depends on its prompt and seed alone, so the
files are the same however many draw.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.errors import ConfigError
from atelier.progress import Progress
from atelier.sampling.requests import Request, read_requests
from atelier.storage.atomic import os_errors, replace_file

if TYPE_CHECKING:
    from PIL import Image

GUIDANCE, STEPS = 7.0, 25
GIF_MS = 80
"""How long a GIF shows a picture."""


def add_paint_arguments(parser: argparse.ArgumentParser) -> None:
    """``paint``'s arguments."""
    _add_common(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given many times")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, or .jsonl with prompt and seed")
    parser.add_argument("--count", type=int, default=1, help="pictures a prompt, of seeds SEED, SEED + 1, …")


def add_interpolate_arguments(parser: argparse.ArgumentParser) -> None:
    """``interpolate``'s arguments."""
    _add_common(parser)
    parser.add_argument("first", help="the prompt at the beginning")
    parser.add_argument("last", help="the prompt at the end")
    parser.add_argument("--number", type=int, default=9, help="pictures, both ends included (9)")


def add_arithmetic_arguments(parser: argparse.ArgumentParser) -> None:
    """``arithmetic``'s arguments."""
    _add_common(parser)
    parser.add_argument("prompt", help="what is added to and removed from")
    parser.add_argument("--add", action="append", default=[], metavar="TEXT", help="may be given many times")
    parser.add_argument("--remove", action="append", default=[], metavar="TEXT", help="may be given many times")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a CrossFlow model (model_index.json)")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the solver ({STEPS})")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help=f"1 follows the text alone ({GUIDANCE:g})")
    parser.add_argument(
        "--solver",
        default="ab2",
        help="ab2, heun, midpoint, euler, or euler_released, which steps as upstream does (ab2)",
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures at once")
    parser.add_argument("--device", default="", help="default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, else float32")


def paint(arguments: argparse.Namespace) -> int:
    """One picture a prompt and seed, ``0000.png`` … in the prompts' order, and their sheet where one process draws all.

    Raises:
        ConfigError: no prompt, a file that cannot be read as prompts, or a model that is none.
        StorageError: the output cannot be written.
    """
    requests = _requests(arguments)
    rank, world = _share()
    mine = list(enumerate(requests))[rank::world]
    pipeline = _open(arguments)
    progress, drawn = Progress("sampling", len(mine), "pictures"), []
    for begin in range(0, len(mine), arguments.batch):
        batch = mine[begin : begin + arguments.batch]
        images = _call(pipeline, arguments, [request.prompt for _, request in batch], [r.seed or 0 for _, r in batch])
        for (number, request), image in zip(batch, images, strict=True):
            _save(image, arguments.out / f"{number:04d}.png", arguments, prompt=request.prompt, seed=request.seed)
            drawn.append(image)
        progress.advance(len(batch))
    if world == 1 and len(drawn) > 1:
        from atelier.sampling.drawing import sheet

        _save(sheet(drawn), arguments.out / "sheet.png", arguments)
    print(f"{len(drawn)} pictures in {arguments.out}")
    return 0


def interpolate(arguments: argparse.Namespace) -> int:
    """``0000.png`` … along the line between two prompts, ``strip.png`` and ``between.gif``.

    Raises:
        ConfigError: fewer than two pictures, or a model that is none. StorageError: the output cannot be written.
    """
    import torch

    pipeline = _open(arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    images = pipeline.interpolate(
        arguments.first, arguments.last, arguments.number, generator, **_settings(arguments)
    ).images
    _write_series(images, arguments, "between", first=arguments.first, last=arguments.last)
    return 0


def arithmetic(arguments: argparse.Namespace) -> int:
    """A picture of every prompt and last of their sum: ``0000.png`` …, ``strip.png`` and ``sum.gif``.

    Raises:
        ConfigError: nothing to add or remove, or a model that is none. StorageError: the output cannot be written.
    """
    import torch

    pipeline = _open(arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    images = pipeline.arithmetic(
        arguments.prompt, arguments.add, arguments.remove, generator, **_settings(arguments)
    ).images
    _write_series(images, arguments, "sum", prompt=arguments.prompt, add=arguments.add, remove=arguments.remove)
    return 0


def _write_series(images: "Sequence[Image.Image]", arguments: argparse.Namespace, name: str, **said: Any) -> None:
    for number, image in enumerate(images):
        _save(image, arguments.out / f"{number:04d}.png", arguments, **said)
    _save(strip(images), arguments.out / "strip.png", arguments, **said)
    with replace_file(arguments.out / f"{name}.gif") as scratch:
        images[0].save(
            scratch, format="gif", save_all=True, append_images=images[1:], duration=GIF_MS, loop=0, disposal=2
        )
    print(f"{len(images)} pictures, strip.png and {name}.gif in {arguments.out}")


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
    elif arguments.prompts.suffix == ".jsonl":
        requests = read_requests(arguments.prompts)
    else:
        with os_errors(arguments.prompts):
            lines = arguments.prompts.read_text(encoding="utf-8").splitlines()
        requests = [Request(line.strip()) for line in lines if line.strip()]
        if not requests:
            raise ConfigError(f"{arguments.prompts} holds no prompt", "write one a line")
    return [
        Request(request.prompt, seed=(arguments.seed if request.seed is None else request.seed) + number)
        for request in requests
        for number in range(arguments.count)
    ]


def _share() -> tuple[int, int]:
    """This process's rank and how many there are, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _open(arguments: argparse.Namespace) -> Any:
    for name in ("steps", "batch"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}", "use at least 1")
    index = arguments.model / "model_index.json"
    try:
        found = json.loads(index.read_text())["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{arguments.model} is not a model's folder ({error})", "give an exported model") from error
    if found != "CrossFlowPipeline":
        raise ConfigError(f"{arguments.model} is a {found}, no CrossFlow", "draw with it by `atelier sample`")

    import torch

    from atelier.sampling.crossflow import CrossFlowPipeline

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    dtype = arguments.dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    pipeline = CrossFlowPipeline.from_pretrained(arguments.model, torch_dtype=getattr(torch, dtype)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "solver": arguments.solver,
        "decode_batch": arguments.batch,
    }


def _call(pipeline: Any, arguments: argparse.Namespace, prompts: list[str], seeds: list[int]) -> Any:
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipeline(prompts, generator=generators, **_settings(arguments)).images


def _save(image: "Image.Image", path: Path, arguments: argparse.Namespace, **said: Any) -> None:
    """Writes a PNG that carries what it was drawn from."""
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text("atelier", json.dumps(said | _settings(arguments) | {"model": str(arguments.model)}))
    with replace_file(path) as scratch:
        image.save(scratch, format="png", pnginfo=note)
