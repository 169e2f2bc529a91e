"""Attaching GLIGEN's layers: counts and names of the published sizes, identity at the start, round trips."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from atelier.errors import ConfigError
from atelier.models.flops import unet_forward_flops
from atelier.models.gligen import PositionNet
from atelier.models.grounded_unet import adapter_parameters, adopt, attach, freeze_base, gates, load_adapter
from atelier.recipes.twins.sdxl import make_unet

GOLDEN = Path(__file__).parents[1] / "parity/golden/gligen"


@pytest.mark.parametrize(("keys", "trainable"), [("keys_sd14", 209_102_240), ("keys_sdxl", 1_812_438_988)])
def test_published_sizes(keys: str, trainable: int) -> None:
    """Names, shapes and counts of the released checkpoints, on the meta device."""
    spec = json.loads((GOLDEN / f"{keys}.json").read_text())
    config = {name: value for name, value in spec["config"].items() if name != "attention_type"}
    with torch.device("meta"):
        unet = attach(UNet2DConditionModel(**config))
    ours = {name: list(p.shape) for name, p in adapter_parameters(unet).items()}
    assert ours == dict(spec["trainable"])
    assert sum(p.numel() for p in adapter_parameters(unet).values()) == trainable
    assert len(dict(unet.named_parameters())) == spec["n_all"]


def inputs(rows: int = 2) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(rows, 4, 16, 16, generator=generator),
        "timestep": torch.tensor([10, 900])[:rows],
        "encoder_hidden_states": torch.randn(rows, 16, 128, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(rows, 64, generator=generator),
            "time_ids": torch.ones(rows, 6),
        },
    }


def grounding(rows: int = 2, slots: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(rows, slots, 4, generator=generator).sort(-1).values
    return {
        "boxes": boxes,
        "masks": torch.ones(rows, slots),
        "positive_embeddings": torch.randn(rows, slots, 128, generator=generator),
    }


@torch.no_grad()
def test_fresh_layers_are_the_base_model() -> None:
    torch.manual_seed(0)
    unet = make_unet(16).eval()
    before = unet(**inputs()).sample
    attach(unet)
    assert torch.equal(unet(**inputs()).sample, before)
    after = unet(**inputs(), cross_attention_kwargs={"gligen": grounding()}).sample
    assert torch.equal(after, before)


@torch.no_grad()
def test_adopt_replaces_diffusers_own_layers_and_computes_the_same() -> None:
    torch.manual_seed(0)
    config = {name: value for name, value in make_unet(16).config.items() if not name.startswith("_")}
    stock = UNet2DConditionModel(**{**config, "attention_type": "gated"}).eval()
    for name, parameter in adapter_parameters(stock).items():
        if "alpha" in name:
            parameter.fill_(0.7)
    expected = stock(**inputs(), cross_attention_kwargs={"gligen": grounding()}).sample
    adopt(stock)
    assert isinstance(stock.position_net, PositionNet)
    ours = stock(**inputs(), cross_attention_kwargs={"gligen": grounding()}).sample
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
    assert adopt(stock) is stock


def test_only_the_adapter_is_trained() -> None:
    unet = attach(make_unet(16))
    freeze_base(unet)
    trained = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trained == set(adapter_parameters(unet))
    assert all(value == 0 for value in gates(unet).values())
    assert len(gates(unet)) == 2 * sum(name.endswith("alpha_attn") for name in trained)


def test_a_plain_unet_is_no_grounded_one() -> None:
    with pytest.raises(ConfigError, match="no GLIGEN layers"):
        adopt(make_unet(16))


def test_load_adapter_lists_every_wrong_key() -> None:
    unet = attach(make_unet(16))
    state = {name: p.detach().clone() for name, p in adapter_parameters(unet).items()}
    state["position_net.nonsense"] = state.pop("position_net.null_positive_feature")
    state["position_net.linears.0.bias"] = torch.zeros(3)
    with pytest.raises(ConfigError) as error:
        load_adapter(unet, state)
    for named in ("null_positive_feature", "nonsense", "linears.0.bias (3,) for (512,)"):
        assert named in str(error.value)


def test_flops_grow_with_the_adapter() -> None:
    with torch.device("meta"):
        plain, grounded = make_unet(16), attach(make_unet(16))
    base = unet_forward_flops(plain, 16, 0, tokens=16)
    assert unet_forward_flops(grounded, 16, 0, tokens=16) == base
    assert unet_forward_flops(grounded, 16, 4, tokens=16) > base
