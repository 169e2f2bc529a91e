"""Checkpoint → adapter → folder: every key accounted for, weights unchanged on the way."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from atelier.convert.pipeline_folder import ADAPTER, export
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import is_adapter_key
from tests.convert import tiny


def adapter(family: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tiny.state(family, 3).items() if is_adapter_key(name)}


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_export_holds_base_and_adapter(family: str, tmp_path: Path) -> None:
    original = tiny.write_base(tmp_path / "base", family)
    made, out = adapter(family), tmp_path / "out"
    out.mkdir()
    counts = export(tmp_path / "base", made, out)
    stock = UNet2DConditionModel.from_pretrained(out / "unet")
    assert stock.config["attention_type"] == "gated"
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, made[name] if is_adapter_key(name) else original[name]), name
    saved = load_file(out / ADAPTER)
    assert saved.keys() == made.keys()
    assert counts["adapter"] == sum(t.numel() for t in made.values())
    assert counts["total"] == counts["adapter"] + sum(t.numel() for t in original.values())
    assert json.loads((out / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert (out / "scheduler/scheduler_config.json").is_file()


def test_an_adapter_of_another_model_is_refused_and_nothing_written(tmp_path: Path) -> None:
    tiny.write_base(tmp_path / "base", "SDXL")
    made = adapter("SDXL")
    dropped = made.pop("position_net.null_position_feature")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="null_position_feature"):
        export(tmp_path / "base", made, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert dropped.shape == (64,)


def test_a_base_without_one_of_its_parts(tmp_path: Path) -> None:
    tiny.write_base(tmp_path / "base", "SD1")
    (tmp_path / "base/scheduler/scheduler_config.json").unlink()
    (tmp_path / "base/scheduler").rmdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="lacks scheduler"):
        export(tmp_path / "base", adapter("SD1"), tmp_path / "out")
