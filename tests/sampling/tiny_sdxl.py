"""The laptop's tiny SDXL, untaught, with GLIGEN's layers and open gates, as an exported folder."""

from pathlib import Path

import torch

from atelier.convert.pipeline_folder import export
from atelier.models.grounded_unet import adapter_parameters, attach
from atelier.recipes.twins.sdxl import make_unet
from tests.recipes.twin import write_twin


def write(folder: Path) -> Path:
    """``folder/model``."""
    base = write_twin(folder / "base")
    torch.manual_seed(5)
    adapter = {name: p.detach().clone() for name, p in adapter_parameters(attach(make_unet(16))).items()}
    for name, tensor in adapter.items():
        if "alpha" in name:
            tensor.fill_(0.9)
    (folder / "model").mkdir()
    export(base, adapter, folder / "model")
    return folder / "model"
