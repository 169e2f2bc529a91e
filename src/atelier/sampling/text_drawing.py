"""Pictures of prompts by a CrossFlow folder: how it is opened, drawn with and what a picture's file says of itself."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atelier.convert.language_model import CONFIG, check_language_model
from atelier.errors import ConfigError
from atelier.storage.atomic import replace_file

if TYPE_CHECKING:
    from PIL import Image

GUIDANCE, STEPS, SOLVER = 7.0, 25, "ab2"
NEEDED = ("vae", "text_encoder", "tokenizer")
"""Parts that a model has of its base."""


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that ``Drawing.of`` reads, and ``--out`` and ``--seed``."""
    parser.add_argument("model", type=Path, help="folder of a CrossFlow model (model_index.json)")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the solver ({STEPS})")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help=f"1 follows the text alone ({GUIDANCE:g})")
    parser.add_argument(
        "--solver",
        default=SOLVER,
        help=f"ab2, heun, midpoint, euler, or euler_released, which steps as upstream does ({SOLVER})",
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures at once")
    parser.add_argument("--device", default="", help="default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, else float32")


@dataclass(frozen=True)
class Drawing:
    """A model and how it draws.

    Attributes:
        model: an exported folder.
        steps, guidance, solver: of the flow.
        batch: pictures at once.
        device: "" is cuda where there is one, this process's.
        dtype: "" is bfloat16 on cuda, else float32.
    """

    model: Path
    steps: int = STEPS
    guidance: float = GUIDANCE
    solver: str = SOLVER
    batch: int = 8
    device: str = ""
    dtype: str = ""

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Drawing":
        """From the command line."""
        names = ("model", "steps", "guidance", "solver", "batch", "device")
        return cls(**{name: getattr(arguments, name) for name in names}, dtype=arguments.dtype or "")

    def open(self) -> Any:
        """The model's pipeline.

        Raises:
            ConfigError: the folder is no CrossFlow's, lacks a part or has another language model; there is no step, no
                picture in a batch or no such device.
            DataError: its language model's configuration cannot be read.
        """
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}", "use at least 1")
        index = self.model / "model_index.json"
        try:
            parts = json.loads(index.read_text())
            found = parts["_class_name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.model} is not a model's folder ({error})", "give an exported model") from error
        if found != "CrossFlowPipeline":
            raise ConfigError(f"{self.model} is a {found}, no CrossFlow", "draw with it by `atelier sample`")
        lacking = [part for part in NEEDED if not (parts.get(part) or [None])[0]]
        if lacking:
            raise ConfigError(
                f"{self.model} lacks {', '.join(lacking)}: it was converted without a base",
                "convert it again with --base, a folder that has them",
            )
        self._check_language_model("t5" if "T5" in str(parts["text_encoder"][1]) else "clip")

        import torch

        from atelier.sampling.crossflow import CrossFlowPipeline

        dtype = getattr(torch, self.precision())
        pipeline = CrossFlowPipeline.from_pretrained(self.model, dtype=dtype).to(self._place())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _check_language_model(self, kind: str) -> None:
        """Sees that the folder's language model is the one that its text encoder was trained on.

        Args:
            kind: as the index has it.
        """
        config = self.model / "context_encoder" / "config.json"
        try:
            width = int(json.loads(config.read_text())["width"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{config} cannot be read ({error})", "export or convert the model again") from error
        check_language_model(self.model / CONFIG, width, str(self.model), kind)

    def precision(self) -> str:
        """The dtype that it draws in: the one asked for, else bfloat16 on cuda and float32 elsewhere."""
        return self.dtype or ("bfloat16" if self._place().startswith("cuda") else "float32")

    def _place(self) -> str:
        """The device; of several the one of this process.

        Raises:
            ConfigError: there is none of that name.
        """
        from atelier.models.pretrained import device, named_device

        if self.device == "cuda":
            return str(named_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}"))
        return str(named_device(self.device) if self.device else device())

    def settings(self) -> dict[str, Any]:
        """The pipeline's keyword arguments."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "solver": self.solver,
            "decode_batch": self.batch,
        }

    def draw(self, pipeline: Any, prompts: Sequence[str], seeds: Sequence[int]) -> "list[Image.Image]":
        """A picture of each prompt from its own seed.

        Raises:
            ConfigError: a seed that torch has no place for.
        """
        import torch

        for seed in seeds:
            check_seed(seed)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images: list[Image.Image] = pipeline(list(prompts), generator=generators, **self.settings()).images
        return images

    def save(self, image: "Image.Image", path: Path, **said: Any) -> None:
        """Writes a PNG, whole or not at all, that carries what it was drawn from."""
        from PIL.PngImagePlugin import PngInfo

        note = PngInfo()
        note.add_text("atelier", json.dumps(said | self.settings() | {"model": str(self.model)}))
        with replace_file(path) as scratch:
            image.save(scratch, format="png", pnginfo=note)


def check_seed(seed: int) -> None:
    """Refuses a seed that torch's generators do not take.

    Raises:
        ConfigError: it has more than 64 bits.
    """
    if not -(2**63) <= seed < 2**64:
        raise ConfigError(f"the seed {seed} has more than 64 bits", "use a smaller one")


def share() -> tuple[int, int]:
    """This process's rank and how many there are, as torchrun says."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
