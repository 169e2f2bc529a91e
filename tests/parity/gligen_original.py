"""Original (ldm) weights through our conversion into our layers: the ``orig_`` kinds of ``gligen/``."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from atelier.convert import ldm_keys, original, unet_folder
from atelier.convert.weights import of_state
from atelier.models.gligen import GatedSelfAttention, PositionNet, ScaledTokens
from atelier.models.grounded_unet import attach
from tests.parity.case import Case

SD1 = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
}
"""The plan of SD 1.x: a layer's case names its weights as in the released checkpoint."""


def _converted(case: Case, config: dict[str, Any]) -> dict[str, Tensor]:
    """The case's weights by diffusers names, which must be those that the case names too."""
    weights = case.weights
    names = ldm_keys.to_diffusers(weights, config)
    if names != case.spec["key_map"]:
        raise AssertionError(f"other names than the case's: {sorted(names.items() ^ case.spec['key_map'].items())[:6]}")
    back = ldm_keys.to_original(names.values(), config)
    if {ours: theirs for theirs, ours in names.items()} != back:
        raise AssertionError("the way back gives other names")
    return {ours: weights[theirs] for theirs, ours in names.items()}


@torch.no_grad()
def fuser(case: Case) -> dict[str, Tensor]:
    """The fuser with its gates as trained, and scaled as the original's sampler scales them."""
    config = case.spec["config"]
    layer = GatedSelfAttention(config["query_dim"], config["context_dim"], config["n_heads"], config["d_head"])
    layer.load_state_dict({name.partition(".fuser.")[2]: t for name, t in _converted(case, SD1).items()})
    x, objs = case.inputs["x"], case.inputs["objs"]
    scaled = {
        name: layer(x, ScaledTokens(objs, float(name.removeprefix("y_scale_").replace("_", "."))))
        for name in case.outputs
        if name.startswith("y_scale_")
    }
    return {"y": layer(x, objs)} | scaled


@torch.no_grad()
def position_net(case: Case) -> dict[str, Tensor]:
    """The grounding tokens."""
    config, given = case.spec["config"], case.inputs
    net = PositionNet(config["in_dim"], config["out_dim"], config["fourier_freqs"], config["hidden"])
    net.load_state_dict({name.removeprefix("position_net."): t for name, t in _converted(case, SD1).items()})
    return {"objs": net(given["boxes"], given["masks"], given["positive_embeddings"])}


@torch.no_grad()
def unet(case: Case) -> dict[str, Tensor]:
    """A whole original UNet in a stock diffusers UNet with our layers."""
    config = case.spec["config"]["diffusers"]
    state = _converted(case, config)
    unet_folder.check(of_state(state), config, case.name)
    there_and_back = original.to_original(of_state(state), config, case.name)
    if any(not torch.equal(weight.tensor(), case.weights[name]) for name, weight in there_and_back.items()):
        raise AssertionError("a weight changed on the way there and back")
    model = attach(UNet2DConditionModel(**config), hidden=state[unet_folder.HIDDEN].shape[0])
    model.load_state_dict(state)
    given = case.inputs
    y = model(
        given["sample"],
        given["timestep"],
        given["encoder_hidden_states"],
        cross_attention_kwargs={
            "gligen": {name: given[name] for name in ("boxes", "masks", "positive_embeddings")},
        },
    ).sample
    return {"y": y}


KINDS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "orig_fuser": fuser,
    "orig_position_net": position_net,
    "orig_unet": unet,
}
