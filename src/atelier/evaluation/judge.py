"""The laptop twins' judge: a small CNN that reads the digit in a crop, or says that the crop is empty.

It is trained on real handwriting that no canvas is drawn with, and tested on a third set (``digits.split``), so
what it reads in a generated picture is a digit as other people write it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.data import digits
from atelier.progress import Progress

CROP = 24
"""Side in pixels that every crop is resized to."""
EMPTY = 10
"""The class of a crop with no digit in it."""


class Judge(nn.Module):
    """Eleven classes: the ten digits and "empty". Input [B, 1, 24, 24] grey in [0, 1], output logits [B, 11]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *self._stage(1, 32), nn.MaxPool2d(2), *self._stage(32, 64), nn.MaxPool2d(2), *self._stage(64, 96)
        )
        self.head = nn.Linear(96, EMPTY + 1)

    @staticmethod
    def _stage(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    def forward(self, crops: Tensor) -> Tensor:
        return self.head(F.dropout(self.features(crops).mean((2, 3)), 0.1, self.training))


def crop(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The box (normalised xyxy) of an image uint8 [H, W, 3] as the judge sees it: float32 [24, 24] in [0, 1]."""
    height, width = image.shape[:2]
    region = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    grey = Image.fromarray(image).convert("L").resize((CROP, CROP), Image.Resampling.BILINEAR, box=region)
    return np.asarray(grey, np.float32) / 255


def jitter(rng: np.random.Generator, box: Sequence[float], amount: float) -> tuple[float, ...]:
    """The box moved and scaled by up to ``amount`` of its side, inside the image."""
    side = box[2] - box[0]
    moved = np.asarray(box) + np.repeat(rng.uniform(-amount, amount, 2)[None], 2, 0).ravel() * side
    grow = rng.uniform(-amount, amount) * side / 2
    return tuple(np.clip(moved + np.array([-grow, -grow, grow, grow]), 0, 1))


def examples(glyphs: digits.Glyphs, count: int, seed: int, amount: float = 0.1) -> tuple[Tensor, Tensor]:
    """Crops drawn from canvases: crops [N, 1, 24, 24] and labels [N].

    "Empty" are boxes that no digit lies in: bare background, and also boxes that merely cut a digit (IoU with its
    own box below 0.3), of which there are more. A judge that had only seen bare background would read a stray part of
    a neighbour as a digit, and call boxes filled in pictures that know nothing of them.
    """
    rng = np.random.default_rng(seed)
    crops: list[np.ndarray] = []
    labels: list[int] = []
    while len(crops) < count:
        layout = digits.layout_random(rng)
        image = digits.draw(rng, layout, glyphs)
        for box, label in layout:
            crops.append(crop(image, jitter(rng, box, amount)))
            labels.append(label)
        empty = digits.layout_random(rng, 1, 1)[0].box
        if all(_iou(empty, box) < 0.3 for box, _ in layout):
            crops.append(crop(image, empty))
            labels.append(EMPTY)
        if rng.random() < 0.2:
            crops.append(crop(digits.draw(rng, [], glyphs), empty))
            labels.append(EMPTY)
    return torch.from_numpy(np.stack(crops[:count]))[:, None], torch.tensor(labels[:count])


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def train_judge(seed: int = 0, crops: int = 24_000, epochs: int = 4, batch: int = 128) -> tuple[Judge, float]:
    """Trains a judge on ``judge_train`` digits.

    Returns:
        the judge, and its accuracy on crops drawn with ``judge_test`` digits.
    """
    split = digits.split()
    x, y = examples(split.judge_train, crops, seed)
    test_x, test_y = examples(split.judge_test, 4000, seed + 1, amount=0.0)
    torch.manual_seed(seed)
    judge = Judge()
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    progress = Progress("judge", steps, "steps")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator)[: steps // epochs * batch].split(batch):
            # Generated strokes are softer and of other contrast than drawn ones: the judge must not mind.
            contrast = torch.empty(len(rows), 1, 1, 1).uniform_(0.7, 1.1, generator=generator)
            # Down to no noise at all: a judge that only ever saw grainy paper reads a digit in a smooth background.
            grain = torch.empty(len(rows), 1, 1, 1).uniform_(0.0, 0.03, generator=generator)
            noise = torch.randn(x[rows].shape, generator=generator) * grain
            loss = F.cross_entropy(judge(x[rows] * contrast + noise), y[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance(loss=loss.item())
    judge.eval()
    return judge, float((read(judge, test_x) == test_y).float().mean())


@torch.no_grad()
def read(judge: Judge, crops: Tensor) -> Tensor:
    """The class of each crop [B, 1, 24, 24] → [B]."""
    return torch.cat([judge(chunk).argmax(1) for chunk in crops.split(512)])


def save(judge: Judge, path: Path) -> None:
    """Writes the judge's weights as safetensors."""
    save_file(judge.state_dict(), path)


def load(path: Path) -> Judge:
    """Reads a judge saved by :func:`save`."""
    judge = Judge()
    judge.load_state_dict(load_file(path))
    return judge.eval()
