"""The key rule at full size (names and shapes on the meta device), and the configuration read back from shapes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.convert import ldm_config, ldm_keys, unet_folder
from atelier.errors import ConfigError, DataError
from tests.convert import tiny

GOLDEN = Path(__file__).parents[1] / "parity/golden/gligen"
SD21 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}


def full_size(family: str) -> dict[str, Any]:
    config = json.loads((GOLDEN / f"keys_{'sdxl' if family == 'SDXL' else 'sd14'}.json").read_text())["config"]
    return config | SD21 if family == "SD2" else config


def test_the_rule_gives_the_released_map_of_sd14() -> None:
    released = json.loads((GOLDEN / "keymap_sd14_orig_to_diffusers.json").read_text())["map"]
    assert len(released) == 966
    names = unet_folder.expected_shapes(full_size("SD1"))
    assert ldm_keys.to_original(names, full_size("SD1")) == {ours: theirs for theirs, ours in released.items()}
    assert ldm_keys.to_diffusers(released, full_size("SD1")) == released


@pytest.mark.parametrize(("family", "tensors"), [("SD1", 966), ("SD2", 966), ("SDXL", 2878)])
def test_every_full_size_name_goes_there_and_back_and_shapes_tell_the_configuration(family: str, tensors: int) -> None:
    config = full_size(family)
    shapes = unet_folder.expected_shapes(config)
    names = ldm_keys.to_original(shapes, config)
    assert len(names) == len(set(names.values())) == tensors
    assert ldm_keys.to_diffusers(names.values(), config) == {theirs: ours for ours, theirs in names.items()}
    told = ldm_config.config_of({names[name]: shape for name, shape in shapes.items()})
    assert unet_folder.family_of(told) == family
    assert unet_folder.expected_shapes(told) == shapes
    heads = [h] * 4 if isinstance(h := config["attention_head_dim"], int) else h
    levels = len(config["block_out_channels"])
    told_heads = [h] * levels if isinstance(h := told["attention_head_dim"], int) else h
    assert told_heads == list(heads)[:levels]


def test_the_adapter_sizes_of_the_published_models() -> None:
    """209,102,240 and 1,812,438,988 are checked by name in tests/models; SD 2.1's is the one without a key list."""
    shapes = unet_folder.expected_shapes(full_size("SD2"))
    trained = {name: shape for name, shape in shapes.items() if ".fuser." in name or name.startswith("position_net.")}
    assert sum(torch.Size(shape).numel() for shape in trained.values()) == 212_559_776
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 1_078_470_500
    assert len(trained) == 280


def original_shapes(family: str) -> dict[str, tuple[int, ...]]:
    config = tiny.CONFIGS[family]
    shapes = unet_folder.expected_shapes(config)
    return {theirs: shapes[ours] for ours, theirs in ldm_keys.to_original(shapes, config).items()}


def test_widths_of_no_released_model_want_a_base() -> None:
    shapes = {name: tuple(24 if n == 32 else n for n in shape) for name, shape in original_shapes("SD1").items()}
    with pytest.raises(ConfigError, match=r"(?s)widths \[24, 64\].*--base"):
        ldm_config.config_of(shapes)


def test_no_unet_at_all() -> None:
    with pytest.raises(DataError, match="no UNet in the original layout"):
        ldm_config.config_of({"input_blocks.0.0.weight": (32, 4, 3, 3)})


def test_blocks_that_the_original_does_not_know() -> None:
    with pytest.raises(ConfigError, match="KDownBlock2D"):
        ldm_keys.module_map(tiny.CONFIGS["SD1"] | {"down_block_types": ["KDownBlock2D", "DownBlock2D"]})
