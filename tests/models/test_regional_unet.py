"""Attaching the regional layers: published counts and names, identity at the start, round trips, any shape."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from atelier.errors import ConfigError
from atelier.models.flops import regional_forward_flops, regional_training_flops, unet_forward_flops
from atelier.models.grounded_unet import adapter_parameters, attach, blocks, freeze_base, is_adapter_key
from atelier.models.regional.batches import collate
from atelier.models.regional.tokens import pooled_tokens
from atelier.models.regional_unet import FUSERS, FuserKind, adopt_regional, attach_regional, kind_of
from atelier.recipes.twins.sdxl import make_unet
from tests.models.regional.layouts import WIDTH, batch, random_boxes, random_layout, randomise
from tests.parity.rich_context import full_config

KINDS: list[FuserKind] = ["ca", "casa", "instdiff"]

PUBLISHED = [
    ("sdxl", "ca", 545_753_600, 2_397_248, 3_115_614_532, 427),
    ("sdxl", "casa", 955_436_800, 2_397_248, 3_525_297_732, 777),
    ("sdxl", "instdiff", 682_786_560, 2_397_248, 3_252_647_492, 707),
    ("sd15", "ca", 43_975_040, 1_083_968, 904_579_972, 103),
    ("sd15", "casa", 93_549_120, 1_083_968, 954_154_052, 183),
    ("sd15", "instdiff", 71_586_368, 1_083_968, 932_191_300, 167),
]
"""Base, fuser, parameters of the fusers, of the position net and of the whole UNet, trained tensors."""


@pytest.mark.parametrize(("base", "kind", "fusers", "net", "total", "tensors"), PUBLISHED)
def test_published_sizes(base: str, kind: FuserKind, fusers: int, net: int, total: int, tensors: int) -> None:
    with torch.device("meta"):
        unet = attach_regional(UNet2DConditionModel(**full_config(base)), kind)
    trained = adapter_parameters(unet)
    assert len(trained) == tensors
    assert sum(p.numel() for name, p in trained.items() if ".fuser." in name) == fusers
    assert sum(p.numel() for name, p in trained.items() if name.startswith("position_net.")) == net
    assert sum(p.numel() for p in unet.parameters()) == total


def inputs(height: int = 16, width: int = 16) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, height, width, generator=generator),
        "timestep": torch.tensor([10, 900]),
        "encoder_hidden_states": torch.randn(2, 16, 128, generator=generator),
        "added_cond_kwargs": {"text_embeds": torch.randn(2, 64, generator=generator), "time_ids": torch.ones(2, 6)},
    }


def grounding(kind: FuserKind, height: int = 16, width: int = 16) -> dict[str, Tensor]:
    layouts = [random_layout(3, height, width), random_layout(5, height, width, seed=2)]
    if kind == "instdiff":
        layouts = [_pooled(one) for one in layouts]
    return batch(collate(layouts, height, width, WIDTH, with_unions=kind != "ca"))


def _pooled(one: Any) -> Any:
    from atelier.models.regional.regions import Region

    regions = [Region((number % 3,), (1.0,)) for number in range(int(one.cells.max()) + 1)]
    states = torch.randn(len(regions), WIDTH, generator=torch.Generator().manual_seed(1)).numpy()
    return one._replace(tokens=pooled_tokens(regions, random_boxes(3), states))


def called(unet: UNet2DConditionModel, given: dict[str, Any], gligen: dict[str, Any] | None) -> Tensor:
    answer: Tensor = unet(**given, cross_attention_kwargs=None if gligen is None else {"gligen": gligen}).sample
    return answer


def made(kind: FuserKind) -> UNet2DConditionModel:
    """The twin's UNet with layers that do something."""
    torch.manual_seed(0)
    unet = attach_regional(make_unet(16), kind, WIDTH, hidden=32)
    for number, (name, part) in enumerate(unet.named_modules()):
        if name.endswith(".fuser") or name == "position_net":
            randomise(part, number)
    return unet.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_fresh_layers_are_the_base_model(kind: FuserKind) -> None:
    torch.manual_seed(0)
    unet = make_unet(16).eval()
    before = unet(**inputs()).sample
    attach_regional(unet, kind, WIDTH)
    assert torch.equal(called(unet, inputs(), None), before)
    assert torch.equal(called(unet, inputs(), grounding(kind)), before)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_do_something_are_left_out_without_grounding(kind: FuserKind) -> None:
    unet = made(kind)
    before = called(unet, inputs(), None)
    torch.manual_seed(0)
    assert torch.equal(before, make_unet(16).eval()(**inputs()).sample)
    assert (called(unet, inputs(), grounding(kind)) - before).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(8, 32), (12, 20), (16, 16)])
def test_any_shape_of_latent(kind: FuserKind, height: int, width: int) -> None:
    """256 tokens are a square too: 8 × 32 must not be taken for 16 × 16."""
    unet = made(kind)
    given = grounding(kind, height, width)
    answer = called(unet, inputs(height, width), given)
    assert answer.shape == (2, 4, height, width)
    objs = unet.position_net(**given)
    assert torch.equal(called(unet, inputs(height, width), {"objs": objs}), answer)
    assert torch.equal(called(unet, inputs(height, width), {"objs": objs}), answer)


@torch.no_grad()
def test_another_latents_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="10×14 map of cells"):
        called(made("ca"), inputs(), grounding("ca", 10, 14))


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_weight_gets_its_gradient_also_with_recomputation(kind: FuserKind) -> None:
    unet = made(kind)
    freeze_base(unet)
    found = {}
    for recomputed in (False, True):
        unet.train().zero_grad()
        if recomputed:
            unet.enable_gradient_checkpointing()
        called(unet, inputs(), grounding(kind)).square().mean().backward()
        found[recomputed] = {n: p.grad.clone() for n, p in unet.named_parameters() if p.grad is not None}
    dead = {f"{name}.fuser.null_text_feat" for name, _ in blocks(unet)} if kind == "instdiff" else set()
    assert found[False].keys() == adapter_parameters(unet).keys() - dead
    for name, gradient in found[False].items():
        torch.testing.assert_close(found[True][name], gradient, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("boxed", [True, False])
def test_a_trained_adapter_says_what_it_is(kind: FuserKind, boxed: bool) -> None:
    unet = attach_regional(make_unet(16), kind, hidden=32, boxed=boxed)
    for number, part in enumerate(unet.modules()):
        if isinstance(part, tuple(FUSERS.values())) or part is unet.position_net:
            randomise(part, number)
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items() if is_adapter_key(name)}
    assert kind_of(state) == kind
    other = adopt_regional(make_unet(16), state)
    assert {name: id(type(part)) for name, part in other.named_modules()} == {
        name: id(type(part)) for name, part in unet.named_modules()
    }
    for name, tensor in adapter_parameters(other).items():
        assert torch.equal(tensor, state[name])
    assert other.position_net.frequencies == (8 if boxed else 0)
    assert other.position_net.keep_small
    assert not adopt_regional(make_unet(16), state, keep_small=False).position_net.keep_small


def test_another_systems_adapter_is_refused() -> None:
    gligen = attach(make_unet(16))
    state = {name: tensor for name, tensor in gligen.state_dict().items() if is_adapter_key(name)}
    with pytest.raises(ConfigError, match="no position net of regional layers"):
        adopt_regional(make_unet(16), state)
    with pytest.raises(ConfigError, match="alpha_attn"):
        kind_of(state)
    regional = attach_regional(make_unet(16))
    state = {name: tensor for name, tensor in regional.state_dict().items() if is_adapter_key(name)}
    state["position_net.linears.2.bias"] = torch.zeros(3)
    with pytest.raises(ConfigError, match=r"linears\.2\.bias \(3,\) for \(512,\)"):
        adopt_regional(make_unet(16), state)


def test_an_unknown_fuser_is_named() -> None:
    fuser: Any = "sa"
    with pytest.raises(ConfigError, match="no regional fuser 'sa'"):
        attach_regional(make_unet(16), fuser)


@torch.no_grad()
def test_a_saved_folder_opens_in_stock_diffusers_as_the_base_model(tmp_path: Path) -> None:
    unet = made("ca")
    unet.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = UNet2DConditionModel.from_pretrained(tmp_path).eval()
    assert not adapter_parameters(stock)
    assert torch.equal(called(stock, inputs(), None), called(unet, inputs(), None))
    state = {name: tensor for name, tensor in unet.state_dict().items() if is_adapter_key(name)}
    again = adopt_regional(stock, state)
    given = grounding("ca")
    assert torch.equal(called(again, inputs(), given), called(unet, inputs(), given))


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_the_layers_own_products(kind: FuserKind) -> None:
    """Against a count by hand: projections and attention of every block, the position net once."""
    with torch.device("meta"):
        plain, grounded = make_unet(16), attach_regional(make_unet(16), kind)
    base, tokens = unet_forward_flops(plain, 16, 0, tokens=16), 40
    by_hand = tokens * (192 * 512 + 512 * 512 + 512 * 128)
    for name, block in blocks(grounded):
        width = block.attn1.to_q.in_features
        length = {64: 64, 96: 16}[width]
        context = {"ca": 0, "casa": length, "instdiff": length + tokens}[kind]
        if kind == "instdiff":
            by_hand += tokens * (128 * width + width * width)
        else:
            by_hand += 2 * length * width**2 + 2 * tokens * 128 * width + 2 * length * tokens * width
        if context:
            by_hand += 2 * length * width**2 + 2 * context * width**2 + 2 * length * context * width
        assert name
    found = regional_forward_flops(grounded, 16, tokens, tokens=16) - base
    assert found == 2 * by_hand
    assert regional_training_flops(make_unet(16).config, 16, tokens, kind, 16) == 2 * base + 3 * found
