"""A CrossFlow twin trained in one process by the recipe's objective, and what is asked of it afterwards."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atelier.data import digit_pairs, digits
from atelier.data.raw_example import RawExample
from atelier.evaluation import judge as judges
from atelier.evaluation import layout
from atelier.models.crossflow.model import CrossFlow
from atelier.recipes import crossflow_losses as losses
from atelier.recipes.crossflow_objective import latents_of
from atelier.recipes.crossflow_prompts import digit_layouts
from atelier.recipes.registry import get
from atelier.recipes.twins.assets import shipped
from atelier.sampling.flow_solvers import solve
from atelier.sampling.guided_flow import GuidedFlow
from atelier.training.optimizer import build_optimizer
from atelier.training.protocol import Draws
from atelier.training.schedule import lr_factor

CANVASES, HELD_OUT = 4000, 512
PROMPTS = 128
TIMES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
"""At which the held-out velocity is asked for; the same ones whatever was trained."""


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        backbone: dimr or dit.
        seed: of the weights, the order and the draws.
        steps, batch, lr: of it.
        released: rules of the published training that are kept (``crossflow.ReleasedRule``).
        pixels: the image tower reads pictures at 256 px, as upstream's, not latents.
        first_step_lost: the warm-up begins at 0, as upstream's, not at its first part.
    """

    backbone: str = "dimr"
    seed: int = 0
    steps: int = 320
    batch: int = 64
    lr: float = 2e-3
    released: tuple[str, ...] = ()
    pixels: bool = False
    first_step_lost: bool = False


@dataclass(frozen=True)
class Trained:
    """A twin with its moving average, and what the training showed."""

    recipe: Any
    model: CrossFlow
    seconds: float
    null_share: float
    log_variance: tuple[float, float]


def recipe_of(plan: Plan) -> Any:
    """The recipe that a plan means."""
    train = {"steps": plan.steps, "batch_size": plan.batch, "lr": plan.lr, "seed": plan.seed}
    overrides = {
        "backbone": plan.backbone,
        "released": list(plan.released),
        "image_tower": "pixels" if plan.pixels else "latents",
        "train": train | {"processes": 1, "warmup_steps": 50},
    }
    return get("crossflow", "laptop", overrides)


def canvases(recipe: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """Encoded canvases of digit pairs, as a shard holds them."""
    rng, glyphs = np.random.default_rng(seed), digits.split().canvas
    size = recipe.config.resolution
    drawn = [digit_pairs.draw(rng, size, glyphs) for _ in range(count)]
    examples = [
        RawExample(str(n), b"", (size, size), canvas.caption, np.zeros((0, 4), np.float32), np.zeros(0), ())
        for n, canvas in enumerate(drawn)
    ]
    encoder, samples = recipe.encoder(shipped("sd_twin")), []
    for begin in range(0, count, 64):
        rows = slice(begin, begin + 64)
        samples += encoder.encode(np.stack([canvas.pixels for canvas in drawn[rows]]), examples[rows])
    return samples


def train(plan: Plan, samples: list[dict[str, Any]]) -> Trained:
    """Trains as the engine does: its optimizer, average, schedule and clipping, its draws by (epoch, index)."""
    recipe = recipe_of(plan)
    objective, settings = recipe.objective(shipped("sd_twin")), recipe.config.train
    torch.manual_seed(plan.seed)
    model = objective.build().train()
    optimizer = build_optimizer(objective.parameter_groups(model), settings)
    order = np.random.default_rng([plan.seed, 1])
    queue: list[tuple[int, int]] = []
    epoch, nulls, bounds = 0, 0.0, [0.0, 0.0]
    began = time.perf_counter()
    watched = model.context_encoder.register_forward_hook(
        lambda _module, _inputs, posterior: bounds.__setitem__(
            slice(None),
            [
                min(bounds[0], float(posterior.log_var.detach().min())),
                max(bounds[1], float(posterior.log_var.detach().max())),
            ],
        )
    )
    for step in range(plan.steps):
        while len(queue) < plan.batch:
            queue += [(epoch, int(index)) for index in order.permutation(len(samples))]
            epoch += 1
        keys, queue = queue[: plan.batch], queue[plan.batch :]
        factor = step / settings.warmup_steps if plan.first_step_lost and step < settings.warmup_steps else None
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * (lr_factor(settings, step) if factor is None else factor)
        batch = objective.collate([samples[index] for _, index in keys])
        found = objective.loss(model, batch, Draws(plan.seed, keys), step / plan.steps)
        optimizer.zero_grad()
        found["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        nulls += float(found["null_share"]) / plan.steps
    watched.remove()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        for parameter in model.parameters():
            if "ema" in optimizer.state[parameter]:
                parameter.copy_(optimizer.state[parameter]["ema"])
    return Trained(recipe, model.eval(), seconds, nulls, (bounds[0], bounds[1]))


@torch.no_grad()
def held_out_losses(trained: Trained, samples: list[dict[str, Any]]) -> tuple[float, float]:
    """The mean squared error of the velocity from a text to its image, and of the null velocity to another's image.

    The last output's alone, at fixed times and draws, without KL and contrastive terms: the same measure whatever the
    training's loss was. The null velocity is what guidance is measured from.
    """
    objective = trained.recipe.objective(shipped("sd_twin"))
    model, totals = trained.model, [0.0, 0.0]
    for begin in range(0, len(samples), 64):
        part = samples[begin : begin + 64]
        batch, draws = objective.collate(part), Draws(12345, [(0, begin + row) for row in range(len(part))])
        shape = objective.networks.latent_shape
        image = latents_of(batch["moments"], draws.normal(shape), objective.scaling_factor)
        noise = draws.normal((int(np.prod(shape)),))
        text = model.context_encoder(batch["text"], batch["mask"]).sample(noise).unflatten(1, shape)
        for kind, target in enumerate((image, image.roll(1, 0))):
            null = torch.full((len(part),), kind == 1)
            for time_ in TIMES:
                t = torch.full((len(part),), time_)
                path = losses.interpolant(text, target, t)
                error = (model.flow(path.x, t, null)[-1].float() - path.velocity).square().mean((1, 2, 3))
                totals[kind] += float(error.sum()) / len(TIMES) / len(samples)
    return totals[0], totals[1]


class Reader:
    """Reads a twin's pictures of the held-out prompts."""

    def __init__(self, judge: Path) -> None:
        self.judge = judges.load(judge)
        self.layouts = digit_layouts(PROMPTS, seed=0)

    def accuracy(self, pictures: list[Any]) -> float:
        """Share of the digits that are those asked for."""
        pixels = [np.asarray(picture.convert("RGB")) for picture in pictures]
        scores = layout.score(
            self.judge, pixels, [one.boxes for one in self.layouts], [one.labels for one in self.layouts]
        )
        return layout.summary(scores)["layout_accuracy"]

    @torch.no_grad()
    def starts(self, pipeline: Any) -> torch.Tensor:
        """The prompts' latents, each from its own seed."""
        generators = [torch.Generator().manual_seed(one.seed) for one in self.layouts]
        latents: torch.Tensor = pipeline.text_latents([one.prompt for one in self.layouts], generators)
        return latents

    @torch.no_grad()
    def ends(self, pipeline: Any, starts: torch.Tensor, steps: int, guidance: float, solver: str) -> torch.Tensor:
        """The latents of the pictures."""
        return solve(GuidedFlow(pipeline.flow, guidance), starts, steps, solver)

    @torch.no_grad()
    def read(self, pipeline: Any, ends: torch.Tensor) -> float:
        """Accuracy of the decoded latents."""
        return self.accuracy(pipeline._decoded(ends, "pil", 64))
