"""Where a UNet's parts lie in the original (ldm) layout and in diffusers', as a rule over its configuration.

ldm numbers every block that runs, downsamplers included (``input_blocks.4.0``); diffusers groups them by level
(``down_blocks.1.resnets.0``). Inside a block only the resnets' leaves have other names. No tensor changes its shape.
The original GLIGEN, SD 1.x and 2.x and SDXL (sgm) all follow it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from atelier.errors import ConfigError

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_FIXED = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "position_net": "position_net",
}
DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


def module_map(config: Mapping[str, Any]) -> dict[str, str]:
    """Original module → diffusers module, for a UNet's diffusers configuration.

    Attention blocks are listed whole: everything below them is named alike.

    Raises:
        ConfigError: the configuration has blocks that the original layout does not know.
    """
    down, up = config["down_block_types"], config["up_block_types"]
    strange = [name for name in (*down, *up) if name not in DOWN and name not in UP]
    if strange or config.get("mid_block_type", "UNetMidBlock2DCrossAttn") != "UNetMidBlock2DCrossAttn":
        raise ConfigError(
            f"the UNet has blocks that the original layout does not know: {strange or config['mid_block_type']}",
            "convert UNets of SD 1.x, SD 2.x and SDXL",
        )
    modules = dict(_FIXED)
    _down(modules, [DOWN[name] for name in down], _per_level(config["layers_per_block"], len(down)))
    _resnet(modules, "middle_block.0", "mid_block.resnets.0")
    modules["middle_block.1"] = "mid_block.attentions.0"
    _resnet(modules, "middle_block.2", "mid_block.resnets.1")
    _up(modules, [UP[name] for name in up], _per_level(config["layers_per_block"], len(up))[::-1])
    return modules


def _per_level(value: Any, levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else list(value)


def _resnet(modules: dict[str, str], original: str, ours: str) -> None:
    for theirs, leaf in _RESNET.items():
        modules[f"{original}.{theirs}"] = f"{ours}.{leaf}"


def _down(modules: dict[str, str], attention: list[bool], layers: list[int]) -> None:
    number = 1
    for level, attends in enumerate(attention):
        for layer in range(layers[level]):
            _resnet(modules, f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{layer}")
            if attends:
                modules[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{layer}"
            number += 1
        if level < len(attention) - 1:
            modules[f"input_blocks.{number}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            number += 1


def _up(modules: dict[str, str], attention: list[bool], layers: list[int]) -> None:
    number = 0
    for level, attends in enumerate(attention):
        for layer in range(layers[level] + 1):
            _resnet(modules, f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{layer}")
            if attends:
                modules[f"output_blocks.{number}.1"] = f"up_blocks.{level}.attentions.{layer}"
            if layer == layers[level] and level < len(attention) - 1:
                modules[f"output_blocks.{number}.{2 if attends else 1}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
            number += 1


def to_diffusers(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Original → diffusers name of each of ``names``; a name that the rule does not know is left out."""
    return _renamed(names, module_map(config))


def to_original(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Diffusers → original name of each of ``names``; a name that the rule does not know is left out."""
    return _renamed(names, {ours: original for original, ours in module_map(config).items()})


def _renamed(names: Iterable[str], modules: Mapping[str, str]) -> dict[str, str]:
    result = {}
    for name in names:
        module = name
        while module and module not in modules:
            module = module.rpartition(".")[0]
        if module:
            result[name] = modules[module] + name[len(module) :]
    return result
