"""What a run computes once: the same results, fewer calls, and the UNet as it was."""

from collections import Counter
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from atelier.models.grounded_unet import adapter_parameters, attach
from atelier.models.overlay import overlaid
from atelier.models.regional_unet import attach_regional
from atelier.recipes.twins import sdxl
from atelier.sampling.remembered import Remembered
from atelier.sampling.run_block import RunBlock
from atelier.sampling.sharing import for_a_run
from tests.sampling.tiny_sd import make_unet


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture
def multiplications(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many rows went through each matrix, by the address of its weight."""
    seen: Counter[int] = Counter()
    plain = nn.functional.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen[weight.data_ptr()] += x.numel() // x.shape[-1]
        return plain(x, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", linear)
    return seen


def inputs(rows: int = 2) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "sample": torch.randn(rows, 4, 16, 16).repeat(2, 1, 1, 1),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2 * rows, 7, 32),
        "cross_attention_kwargs": {"gligen": {"objs": torch.randn(2 * rows, 5, 32)}},
    }


@torch.no_grad()
def test_the_same_bits_and_the_text_once(unet: UNet2DConditionModel, multiplications: Counter[int]) -> None:
    given = inputs()
    expected = unet(**given).sample
    before = Counter(multiplications)
    multiplications.clear()
    run = for_a_run(unet)
    for _ in range(3):
        assert torch.equal(run(**given).sample, expected)
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    for shared, times in (
        (block.attn1.to_q, 3),
        (block.attn2.to_k, 1),
        (block.fuser.linear, 1),
        (block.attn2.to_q, 3),
    ):
        address = shared.weight.data_ptr()
        assert multiplications[address] == before[address] * times


@torch.no_grad()
def test_regional_layers_read_their_tokens_once(multiplications: Counter[int]) -> None:
    torch.manual_seed(0)
    unet = attach_regional(make_unet(), "casa").eval()
    for parameter in adapter_parameters(unet).values():
        nn.init.normal_(parameter, std=0.1)
    given = inputs()
    grounding = unet.position_net(
        text=torch.randn(4, 8, 32),
        boxes=torch.rand(4, 8, 4),
        bias=torch.zeros(4, 8),
        region=torch.arange(8).expand(4, -1) % 3,
        cells=torch.randint(0, 3, (4, 16, 16)),
        unions=torch.rand(4, 3, 16, 16) > 0.3,
    )
    given["cross_attention_kwargs"] = {"gligen": {"objs": grounding}}
    expected = unet(**given).sample
    before = Counter(multiplications)
    multiplications.clear()
    run = for_a_run(unet)
    for _ in range(3):
        assert torch.equal(run(**given).sample, expected)
    fuser = unet.down_blocks[0].attentions[0].transformer_blocks[0].fuser
    for once in (fuser.attn.to_k, fuser.attn.to_v):
        assert multiplications[once.weight.data_ptr()] == before[once.weight.data_ptr()] > 0
    for every in (fuser.attn.to_q, fuser.self_attn.to_k):
        assert multiplications[every.weight.data_ptr()] == 3 * before[every.weight.data_ptr()] > 0


@torch.no_grad()
def test_a_new_prompt_is_not_answered_with_the_old_one(unet: UNet2DConditionModel) -> None:
    run = for_a_run(unet)
    for seed in (1, 2):
        given = inputs() | {
            "encoder_hidden_states": torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(seed))
        }
        assert torch.equal(run(**given).sample, unet(**given).sample)
    linear = nn.Linear(3, 3)
    remembered, x = Remembered(linear), torch.ones(2, 3)
    assert remembered(x) is remembered(x)
    x += 1  # changed in place: another question
    assert torch.equal(remembered(x), linear(x))


@torch.no_grad()
def test_halves_that_differ_have_the_unets_bits_too(unet: UNet2DConditionModel) -> None:
    given = inputs()
    given["sample"] = torch.randn(4, 4, 16, 16)
    assert torch.equal(for_a_run(unet)(**given).sample, unet(**given).sample)


def test_sdxl_shares_its_text_too() -> None:
    run = for_a_run(attach(sdxl.make_unet(16)))
    assert any(isinstance(module, Remembered) for module in run.modules())


@torch.no_grad()
def test_a_batch_of_another_size_is_computed_whole(unet: UNet2DConditionModel) -> None:
    """As when a callback ends the guidance amid a run."""
    given = inputs() | {"sample": torch.randn(2, 4, 16, 16), "encoder_hidden_states": torch.randn(2, 7, 32)}
    given["cross_attention_kwargs"] = None
    assert torch.equal(for_a_run(unet)(**given).sample, unet(**given).sample)


def test_the_unet_is_left_as_it_was(unet: UNet2DConditionModel) -> None:
    names = [(name, id(module)) for name, module in unet.named_modules()]
    run = for_a_run(unet)
    assert [(name, id(module)) for name, module in unet.named_modules()] == names
    assert {id(p) for p in run.parameters()} == {id(p) for p in unet.parameters()}
    assert run.dtype == unet.dtype
    assert run.config == unet.config


def test_a_unet_that_somebody_looks_into_is_used_itself(unet: UNet2DConditionModel) -> None:
    hook = unet.mid_block.register_forward_hook(lambda module, given, output: None)
    try:
        assert for_a_run(unet) is unet
    finally:
        hook.remove()
    assert for_a_run(unet) is not unet


def test_overlaid_parts_answer_for_those_below() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    made: Any = overlaid(net, {"0.0": Remembered(net[0][0])})
    assert made[0][0].in_features == 2
    assert made[0][1] is net[0][1]
    assert made[1] is net[1]
    assert type(net[0][0]) is nn.Linear


@torch.no_grad()
def test_blocks_are_run_without_their_modules(unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs()
    expected = unet(**given).sample
    run = for_a_run(unet)
    blocks = [module for module in unet.modules() if type(module) is BasicTransformerBlock]
    assert sum(isinstance(module, RunBlock) for module in run.modules()) == len(blocks) > 0
    asked: list[Any] = []
    plain = BasicTransformerBlock.forward

    def forward(self: BasicTransformerBlock, *args: Any, **others: Any) -> Any:
        asked.append(others)
        return plain(self, *args, **others)

    monkeypatch.setattr(BasicTransformerBlock, "forward", forward)
    assert torch.equal(run(**given).sample, expected)
    assert not asked
    # What else a processor may take, and masks, are diffusers' to tell.
    more = {"cross_attention_kwargs": {**given["cross_attention_kwargs"], "ip_adapter_masks": None}}
    assert torch.equal(run(**given | more).sample, expected)
    assert len(asked) == len(blocks)
    mask = {"encoder_attention_mask": torch.tensor([[True] * 5 + [False] * 2] * 4)}
    assert torch.equal(run(**given | mask).sample, unet(**given | mask).sample)
    assert not torch.equal(run(**given | mask).sample, expected)


@pytest.mark.parametrize("what", ["lora", "processor", "training", "gradients"])
def test_a_block_with_something_in_it_is_run_as_it_is(what: str) -> None:
    unet = make_unet()
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    if what == "lora":
        block.attn1.to_q = nn.Sequential(block.attn1.to_q)
    elif what == "processor":
        block.attn1.set_processor(AttnProcessor())
    elif what == "training":
        block.train()
    with torch.set_grad_enabled(what == "gradients"):
        run = for_a_run(unet)
        assert type(run.mid_block.attentions[0].transformer_blocks[0]) is BasicTransformerBlock
        given = inputs()
        assert torch.equal(run(**given).sample, unet(**given).sample)
