"""LoRA on FLUX: which layers, how they begin, what alpha does."""

import pytest
import torch
from torch import nn

from atelier.errors import ConfigError
from atelier.models.flux.lora import add_lora, load_lora_state, lora_state, target_modules
from atelier.models.flux.velocity import velocity
from tests.models.flux.tiny import inputs, tiny_flux


def test_each_choice_takes_its_layers() -> None:
    model = tiny_flux()
    linear = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    blocks = target_modules(model, "blocks")
    assert {name.split(".")[0] for name in linear - set(blocks)} == {
        "time_text_embed",
        "context_embedder",
        "x_embedder",
        "norm_out",
        "proj_out",
    }
    assert len(blocks) == 2 * 14 + 2 * 6
    assert len(target_modules(model, "diffusers")) == 2 * 12 + 2 * 3
    attention = target_modules(model, "attention")
    assert len(attention) == 2 * 4 + 2 * 3
    assert not [name for name in attention if "add_" in name or "ff" in name]


def test_exactly_those_layers_are_trained_and_in_float32() -> None:
    model = tiny_flux().to(torch.bfloat16)
    trained = add_lora(model, "diffusers", 4, 4)
    layers = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    plain = tiny_flux()
    assert layers == set(target_modules(plain, "diffusers"))
    assert {p.dtype for p in trained} == {torch.float32}
    assert model.x_embedder.weight.dtype == torch.bfloat16


def test_it_begins_as_the_base() -> None:
    model, given = tiny_flux(), inputs()
    before = velocity(model, **given)
    add_lora(model, "blocks", 4, 8)
    assert torch.equal(velocity(model, **given), before)


@pytest.mark.parametrize(("init", "spread"), [("gaussian", 1 / 8), ("kaiming", 1 / 32**0.5 / 3**0.5)])
def test_how_a_begins(init: str, spread: float) -> None:
    model = tiny_flux()
    torch.manual_seed(0)
    add_lora(model, "attention", 8, 8, init)  # type: ignore[arg-type]
    down = torch.cat([t.flatten() for name, t in lora_state(model).items() if "lora_A" in name])
    assert float(down.std()) == pytest.approx(spread, rel=0.1)  # uniform in ±1/√in, or σ = 1/rank


def test_alpha_scales_the_change() -> None:
    given, found = inputs(), []
    for alpha in (2.0, 4.0):
        model = tiny_flux()
        torch.manual_seed(0)
        add_lora(model, "blocks", 4, alpha)
        state = {name: torch.full_like(t, 1e-3) for name, t in lora_state(model).items()}
        load_lora_state(model, state)
        with torch.no_grad():
            found.append(velocity(model, **given) - velocity(tiny_flux(), **given))
    ratio = float((found[1] * found[0]).sum() / found[0].square().sum())
    assert ratio == pytest.approx(2, rel=0.02)


def test_a_state_of_another_rank_is_refused() -> None:
    model, other = tiny_flux(), tiny_flux()
    add_lora(model, "attention", 4, 4)
    add_lora(other, "attention", 2, 4)
    with pytest.raises(ConfigError, match=r"28 misshapen keys.*\(2, 32\) for \(4, 32\)"):
        load_lora_state(model, lora_state(other))


def test_what_makes_no_lora() -> None:
    with pytest.raises(ConfigError, match="no LoRA targets"):
        target_modules(tiny_flux(), "all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no layers for LoRA"):
        target_modules(nn.Linear(2, 2), "blocks")
    with pytest.raises(ConfigError, match="changes nothing"):
        add_lora(tiny_flux(), "blocks", 0, 4)
    with pytest.raises(ConfigError, match="no initialisation"):
        add_lora(tiny_flux(), "blocks", 4, 4, "zeros")  # type: ignore[arg-type]


def test_a_model_without_guidance() -> None:
    given = inputs() | {"guidance": None}
    assert velocity(tiny_flux(guidance_embeds=False), **given).shape == (2, 4, 8, 12)  # type: ignore[arg-type]
