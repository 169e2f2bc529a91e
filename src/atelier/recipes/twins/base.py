"""Teaches a twin to draw digits from captions, before any layout is known: the "pre-trained base".

What made it work (facts of an earlier trial): a curriculum. At first most canvases carry one digit four times on a
2×2 grid, so that the caption's word is the only thing to learn; later come singles and mixed canvases.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from atelier.data import digits
from atelier.recipes.denoising import NoiseSchedule, box_weights, compute_dtype, weighted_mse
from atelier.recipes.twins.shape import TwinShape
from atelier.training.protocol import Draws


def grid_layout(rng: np.random.Generator, labels: list[int]) -> list[digits.Placement]:
    """Four digits on a 2×2 grid, each jittered inside its quarter."""
    placements = []
    for cell, label in enumerate(labels):
        side = int(rng.integers(20, 31))
        left = int(rng.integers(0, 33 - side)) + 32 * (cell % 2)
        top = int(rng.integers(0, 33 - side)) + 32 * (cell // 2)
        box = (left / 64, top / 64, (left + side) / 64, (top + side) / 64)
        placements.append(digits.Placement(box, label))
    return placements


MIXED_FROM = 0.6
"""The share of the training from which on canvases are mixed."""


def curriculum_layout(rng: np.random.Generator, progress: float) -> list[digits.Placement]:
    """A layout for this share of the training: one-class grids first, ever more singles and mixed canvases, then mixed.

    A base that is left with one-class canvases to the end draws "a zero and a nine" as two zeros, and no adapter can
    then put two different digits into two boxes: 52 % right against 97 % after the mixed last part.
    """
    kind = rng.random()
    if progress >= MIXED_FROM:
        if kind < 0.1:
            return grid_layout(rng, [int(rng.integers(10))] * 4)
        if kind < 0.3:
            return grid_layout(rng, [int(label) for label in rng.integers(10, size=4)])
        return digits.layout_random(rng, 1, 1) if kind < 0.45 else digits.layout_random(rng, 2, 4)
    one_class = np.interp(progress / MIXED_FROM, [0.0, 0.35, 0.7, 1.0], [0.8, 0.6, 0.25, 0.2])
    if kind < one_class:
        return grid_layout(rng, [int(rng.integers(10))] * 4)
    if kind < one_class + (1 - one_class) * 0.5:
        return digits.layout_random(rng, 1, 1)
    return digits.layout_random(rng, 2, 4)


class CurriculumDataset:
    """Canvases drawn on demand; sample ``i`` of ``samples`` is what the curriculum holds at share i / samples.

    To be read in order, once: it is one epoch as long as the training.
    """

    def __init__(self, samples: int, seed: int, size: int = 64) -> None:
        self.samples, self.seed, self.size = samples, seed, size
        self.glyphs = digits.split().canvas

    def __len__(self) -> int:
        return self.samples

    def sample(self, index: int) -> dict[str, Any]:
        """``image`` uint8 [size, size, 3], ``caption``, ``boxes`` float32 [4, 4] padded, ``mask`` float32 [4]."""
        rng = np.random.default_rng([self.seed, index])
        layout = curriculum_layout(rng, index / self.samples)
        boxes, mask = np.zeros((4, 4), np.float32), np.zeros(4, np.float32)
        boxes[: len(layout)], mask[: len(layout)] = [box for box, _ in layout], 1
        image = digits.draw(rng, layout, self.glyphs, (self.size, self.size))
        return {"image": image, "caption": digits.caption(layout), "boxes": boxes, "mask": mask}


TEXT = "text."
"""Begins the names of a batch's text embeddings."""


class BaseObjective:
    """Trains the whole twin UNet on captioned canvases (``atelier.training.protocol.Objective``).

    Args:
        parts: folder with the twin's vae, text encoders and tokenizers.
        size: pixels of a canvas's side.
    """

    def __init__(self, shape: TwinShape, parts: Path, size: int) -> None:
        self.shape, self.size = shape, size
        self.vae = AutoencoderKL.from_pretrained(parts / "vae").eval().requires_grad_(False)
        self.embed = shape.open_text(parts)
        self._empty = self.embed([""])
        self.schedule = NoiseSchedule.of(shape.make_scheduler())

    def build(self) -> nn.Module:
        return self.shape.make_unet(self.size // 4)

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": list(model.parameters()), "name": "unet"}]

    @torch.no_grad()
    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Draws become latents and text embeddings here, on the fly: encoding is 6 % of a step of this size."""
        images = torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = self.vae.encode(images).latent_dist.mean * self.vae.config["scaling_factor"]
        return {
            "latents": latents,
            **{TEXT + name: states for name, states in self.embed([s["caption"] for s in samples]).items()},
            "boxes": torch.from_numpy(np.stack([s["boxes"] for s in samples])),
            "masks": torch.from_numpy(np.stack([s["mask"] for s in samples])),
        }

    def loss(self, model: nn.Module, batch: dict[str, Any], draws: Draws, progress: float) -> dict[str, Tensor]:
        x: Tensor = batch["latents"]
        timesteps = self.schedule.timesteps(draws, power=0.7)
        noised, target = self.schedule.noised(x, draws.normal(x.shape[1:]), timesteps)
        keep, dtype = ~draws.chance(0.1), compute_dtype(model)
        text = {
            name: self._kept(batch[TEXT + name], keep, empty.to(x.device)).to(dtype)
            for name, empty in self._empty.items()
        }
        prediction = model(noised.to(dtype), timesteps, **self.shape.unet_arguments(text, self.size)).sample
        weights = box_weights(batch["boxes"], batch["masks"], (x.shape[2], x.shape[3]), inside=4.0)
        return {"loss": weighted_mse(prediction, target, weights).mean()}

    def _kept(self, states: Tensor, keep: Tensor, empty: Tensor) -> Tensor:
        """Embeddings [B, …] with those of dropped captions replaced as the base's sampler does without a prompt."""
        keep = keep.view(-1, *[1] * (states.dim() - 1))
        return states * keep.float() if self.shape.empty_is_zeros else torch.where(keep, states, empty)

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(model.state_dict())

    def gauges(self, model: nn.Module) -> dict[str, float]:
        return {}

    def preview(self, model: nn.Module, step: int) -> None:
        return None

    def flops_per_sample(self) -> float:
        """Three forward passes: everything is trained."""
        from atelier.models.flops import unet_forward_flops
        from atelier.recipes.twins.make import TOKENS

        with torch.device("meta"):
            model = self.shape.make_unet(self.size // 4)
        return 3.0 * unet_forward_flops(model, self.size // 4, 0, TOKENS)


class InOrder:
    """Batches of a dataset in its own order, for a curriculum; the loader of ``training.engine.train``.

    Position p of the one long epoch goes to rank (p // batch_size) % world, so that ranks share one order.
    """

    def __init__(
        self,
        dataset: CurriculumDataset,
        batch_size: int,
        rank: int,
        world: int,
        seed: int,
        start: int,
        workers: int,
        collate: Callable[[list[dict[str, Any]]], Any],
    ) -> None:
        self.dataset, self.batch_size, self.rank, self.world = dataset, batch_size, rank, world
        self.position, self.collate = start, collate

    unusable: ClassVar[dict[int, str]] = {}  # what is drawn on demand cannot be damaged

    def close(self) -> None:
        """Nothing to end."""

    def __next__(self) -> Any:
        first = self.position + self.rank * self.batch_size
        self.position += self.batch_size * self.world
        indices = (place % len(self.dataset) for place in range(first, first + self.batch_size))
        return self.collate([self.dataset.sample(index) | {"epoch": 0, "index": index} for index in indices])
