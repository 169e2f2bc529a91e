"""Checkpoint → adapter → folder: every key accounted for, weights unchanged on the way."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from atelier.convert.pipeline_folder import ADAPTER, export
from atelier.errors import ConfigError
from atelier.models.grounded_unet import adapter_parameters, attach, is_adapter_key
from atelier.recipes.twins.sdxl import make_unet
from tests.recipes.twin import write_twin


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("base"))


def adapter(seed: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn_like(p) for name, p in adapter_parameters(attach(make_unet(16))).items()}


def test_export_holds_base_and_adapter(base: Path, tmp_path: Path) -> None:
    made = adapter()
    counts = export(base, made, tmp_path)
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert stock.config["attention_type"] == "gated"
    original = UNet2DConditionModel.from_pretrained(base / "unet").state_dict()
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, made[name] if is_adapter_key(name) else original[name]), name
    saved = load_file(tmp_path / ADAPTER)
    assert saved.keys() == made.keys()
    assert counts["adapter"] == sum(t.numel() for t in made.values())
    assert counts["total"] == counts["adapter"] + sum(t.numel() for t in original.values())
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_an_adapter_of_another_model_is_refused_and_nothing_written(base: Path, tmp_path: Path) -> None:
    made = adapter()
    dropped = made.pop("position_net.null_position_feature")
    with pytest.raises(ConfigError, match="null_position_feature"):
        export(base, made, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert dropped.shape == (64,)
