"""What a training step calls in the UNet's place: the same function and gradients, less work."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from atelier.models.attention import PLAIN_UP_TO, attend
from atelier.models.grounded_unet import adapter_parameters, attach, blocks, freeze_base
from atelier.models.lean_block import LeanBlock
from atelier.models.regional.batches import collate
from atelier.models.regional.position_net import RegionTextNet
from atelier.models.regional_unet import FUSERS, attach_regional
from atelier.models.training_view import TrainingView
from atelier.recipes.twins import sdxl
from tests.models.regional.layouts import WIDTH, batch, random_layout, randomise
from tests.sampling.tiny_sd import make_unet


def made(kind: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    if kind in ("ca", "casa", "instdiff"):
        unet = attach_regional(sdxl.make_unet(16), kind, WIDTH)
        for number, part in enumerate(unet.modules()):
            if isinstance(part, tuple(FUSERS.values())):
                randomise(part, number)
        freeze_base(unet)
        return unet.train()
    unet = make_unet() if kind == "sd" else attach(sdxl.make_unet(16))
    for name, parameter in adapter_parameters(unet).items():
        if ".alpha_" in name:
            parameter.data.fill_(0.5)
    freeze_base(unet)
    return unet.train()


def inputs(unet: UNet2DConditionModel) -> dict[str, Any]:
    width = unet.config["cross_attention_dim"]
    given: dict[str, Any] = {
        "sample": torch.randn(2, 4, 16, 16),
        "timestep": torch.tensor([500, 20]),
        "encoder_hidden_states": torch.randn(2, 7, width),
        "cross_attention_kwargs": {
            "gligen": {
                "boxes": torch.rand(2, 5, 4),
                "masks": torch.tensor([[1.0] * 3 + [0.0] * 2] * 2),
                "positive_embeddings": torch.randn(2, 5, width),
            }
        },
    }
    if isinstance(unet.position_net, RegionTextNet):
        layouts = [random_layout(4, 16, 16), None]
        gligen = batch(collate(layouts, 16, 16, WIDTH, with_unions=True))
        given["cross_attention_kwargs"] = {"gligen": gligen}
    if unet.config["addition_embed_type"] == "text_time":
        ids = unet.config["addition_time_embed_dim"]
        pooled = unet.config["projection_class_embeddings_input_dim"] - 6 * ids
        given["added_cond_kwargs"] = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.full((2, 6), 16.0)}
    return given


def gradients(unet: UNet2DConditionModel, called: nn.Module, given: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    unet.zero_grad()
    answer = called(**given).sample
    answer.square().mean().backward()
    return answer.detach(), {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["sd", "sdxl", "ca", "casa", "instdiff"])
def test_the_unets_answer_and_gradients(kind: str) -> None:
    unet = made(kind)
    given, view = inputs(unet), TrainingView().of(unet)
    assert sum(isinstance(part, LeanBlock) for part in view.modules()) == len(list(blocks(unet))) > 0
    plain, expected = gradients(unet, unet, given)
    lean, found = gradients(unet, view, given)
    torch.testing.assert_close(lean, plain, rtol=1e-4, atol=1e-5)
    dead = {f"{name}.fuser.null_text_feat" for name, _ in blocks(unet)} if kind == "instdiff" else set()
    assert found.keys() == expected.keys() == adapter_parameters(unet).keys() - dead
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_the_unet_is_left_as_it_was_and_its_view_kept() -> None:
    unet, views = made("sd"), TrainingView()
    names = [(name, id(part)) for name, part in unet.named_modules()]
    view = views.of(unet)
    assert views.of(unet) is view
    assert [(name, id(part)) for name, part in unet.named_modules()] == names
    assert {id(p) for p in view.parameters()} == {id(p) for p in unet.parameters()}
    other = made("sd")
    assert views.of(other) is not view


def test_a_watched_unet_is_called_itself() -> None:
    """As ZeRO 3 does: it gathers a module's weights when the module is called."""
    unet, views = made("sd"), TrainingView()
    views.of(unet)
    hook = unet.mid_block.register_forward_pre_hook(lambda module, given: None)
    assert views.of(unet) is unet
    hook.remove()
    assert views.of(unet) is not unet


def test_dropout_is_left_to_the_block() -> None:
    unet = made("sd")
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    block.attn1.to_out[1].p = 0.1
    found: Any = TrainingView().of(unet)
    assert type(found.mid_block.attentions[0].transformer_blocks[0]) is BasicTransformerBlock


@pytest.mark.parametrize("frozen_keys", [False, True])
@pytest.mark.parametrize("keys", [9, PLAIN_UP_TO + 1])
def test_attention_is_attention(keys: int, frozen_keys: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.double) for length in (5, keys, keys))
    wanted = [q] if frozen_keys else [q, k, v]
    for part in wanted:
        part.requires_grad_(True)
    expected = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v).square().sum(), wanted)
    found = torch.autograd.grad(attend(q, k, v).square().sum(), wanted)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
