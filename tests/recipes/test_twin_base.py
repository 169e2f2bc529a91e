"""The twins' bases: their shapes, the objective that teaches them, and how an absent caption looks to each."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from atelier.errors import ConfigError
from atelier.recipes.twins.assets import PARTS
from atelier.recipes.twins.base import BaseObjective, CurriculumDataset
from atelier.recipes.twins.shape import shape
from atelier.training.protocol import Draws
from tests.recipes.twin import write_twin


@pytest.mark.parametrize("twin", PARTS)
def test_folder_and_objective(twin: str, tmp_path: Path) -> None:
    folder = write_twin(tmp_path, twin=twin)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(PARTS[twin])
    DiffusionPipeline.from_pretrained(folder)
    objective = BaseObjective(shape(twin), folder, 64)
    torch.manual_seed(0)
    model, dataset = objective.build(), CurriculumDataset(100, 0)
    batch = objective.collate([dataset.sample(index) for index in range(4)])
    objective.loss(model, batch, Draws(0, [(0, index) for index in range(4)]), 0.0)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    keep = torch.tensor([True, False, False, True])
    states, empty = batch["text.prompt"], objective.embed([""])["prompt"]
    kept = objective._kept(states, keep, empty)
    assert torch.equal(kept[0], states[0])
    expected = torch.zeros_like(empty[0]) if twin == "sdxl_twin" else empty[0]
    assert torch.equal(kept[1], expected)


def test_an_unknown_twin_is_refused() -> None:
    with pytest.raises(ConfigError, match="no twin 'other'"):
        shape("other")
