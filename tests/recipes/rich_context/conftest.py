"""The recipe on both bases: a fresh twin, encoded samples, an exported model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.models.grounded_unet import adapter_parameters
from atelier.recipes.registry import get
from tests.recipes.rich_context.pictures import encoded
from tests.recipes.twin import write_twin


@pytest.fixture(scope="module", params=["rich_context", "rich_context:sd15"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("base"), twin=get(name, "laptop").twin)


@pytest.fixture(scope="module")
def samples(name: str, base: Path) -> list[dict[str, Any]]:
    return encoded(name, base)


@pytest.fixture(scope="module")
def exported(name: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = get(name, "laptop")
    objective = recipe.objective(base)
    torch.manual_seed(3)
    unet = objective.build()
    for parameter in adapter_parameters(unet).values():
        torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path_factory.mktemp("exported")
    counts = recipe.export(base, objective.trainable_state(unet), folder)
    assert counts["adapter"] == sum(p.numel() for p in adapter_parameters(unet).values())
    assert counts["total"] == sum(p.numel() for p in unet.parameters())
    return folder
