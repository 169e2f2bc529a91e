"""What the recipes say of their size is counted again, on meta tensors."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from atelier.models.activations import saved_bytes
from atelier.models.crossflow.flops import training_flops
from atelier.models.crossflow.model import CrossFlow
from atelier.models.flops import adapter_training_flops, region_inputs, regional_training_flops, unet_inputs
from atelier.models.grounded_unet import adapter_parameters, attach, freeze_base
from atelier.models.regional_unet import attach_regional
from atelier.recipes.crossflow import STAGES
from atelier.recipes.registry import get

GOLDEN = Path(__file__).parents[1] / "parity/golden/gligen"
ASSETS = Path(__file__).parents[2] / "src/atelier/recipes/assets"
TWINS = ("igligen_xl", "igligen_xl:1024", "gligen_coco", "rich_context", "rich_context:sd15")
PAPERS = {
    "igligen_xl": "keys_sdxl",
    "igligen_xl:1024": "keys_sdxl",
    "gligen_coco": "keys_sd14",
    "rich_context": "keys_sdxl",
    "rich_context:sd15": "keys_sd14",
}


def compare(recipe: Any, config: dict[str, Any], latent: int, tokens: int, dtype: torch.dtype) -> None:
    stated, boxes = recipe.footprint, recipe.config.max_boxes
    regional = recipe.name == "rich_context"
    with torch.device("meta"):
        plain = UNet2DConditionModel(**config)
        unet = attach_regional(plain, recipe.config.fuser) if regional else attach(plain)
        freeze_base(unet)
        for module in unet.modules():
            module.to(dtype)
        trainable = sum(p.numel() for p in adapter_parameters(unet).values())

        def forward(rows: int) -> torch.Tensor:
            given = unet_inputs(unet.config, latent, 0 if regional else boxes, tokens, rows)
            if regional:
                regions = region_inputs(unet.config, latent, recipe.region_tokens, batch=rows)
                given["cross_attention_kwargs"] = {"gligen": regions}
            return unet(**_cast(given, dtype)).sample

        held = [saved_bytes(functools.partial(forward, rows), unet.parameters()) for rows in (1, 2)]
    assert stated.trainable == trainable
    assert stated.trainable + stated.frozen == sum(p.numel() for p in unet.parameters())
    assert stated.activation_bytes == pytest.approx(held[1] - held[0], rel=0.02)
    if regional:
        flops = regional_training_flops(config, latent, recipe.region_tokens, recipe.config.fuser, tokens)
    else:
        flops = adapter_training_flops(config, latent, boxes, tokens)
    assert stated.training_flops == pytest.approx(flops, rel=0.005)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    if isinstance(values, dict):
        return {name: _cast(value, dtype) for name, value in values.items()}
    return values.to(dtype) if values.is_floating_point() else values


@pytest.mark.parametrize("name", TWINS)
def test_twins(name: str) -> None:
    recipe = get(name, "laptop")
    base = ASSETS / recipe.twin
    vae = AutoencoderKL.load_config(base / "vae")
    latent = recipe.config.resolution // 2 ** (len(vae["block_out_channels"]) - 1)
    tokens = json.loads((base / "text_encoder" / "config.json").read_text())["max_position_embeddings"]
    config = {k: v for k, v in UNet2DConditionModel.load_config(base / "unet").items() if not k.startswith("_")}
    compare(recipe, config, latent, tokens, torch.float32)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        size = recipe.config.resolution
        AutoencoderKL.from_config(vae).encode(torch.zeros(1, 3, size, size))
    assert recipe.footprint.encoding_flops == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_papers(name: str) -> None:
    config = json.loads((GOLDEN / f"{PAPERS[name]}.json").read_text())["config"]
    config = {key: value for key, value in config.items() if key != "attention_type"}
    recipe = get(name, "paper")
    compare(recipe, config, recipe.config.resolution // 8, 77, torch.bfloat16)


CROSSFLOW = ["crossflow", *(f"crossflow:{stage}" for stage in STAGES)]


@pytest.mark.parametrize("profile", ["laptop", pytest.param("paper", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CROSSFLOW)
def test_crossflow(name: str, profile: str) -> None:
    recipe = get(name, profile)
    config, stated = recipe.config, recipe.footprint
    networks = config.model()
    dtype = torch.bfloat16 if profile == "paper" else torch.float32
    with torch.device("meta"):
        model = CrossFlow(networks)
        for module in model.modules():
            module.to(dtype)
        if config.gradient_checkpointing:
            model.flow.enable_gradient_checkpointing()

        def forward(rows: int) -> Any:
            tokens, width = networks.text.get("tokens", 77), networks.text.get("width", 768)
            latents = torch.zeros(rows, *networks.latent_shape, dtype=dtype)
            posterior = model.context_encoder(torch.zeros(rows, tokens, width, dtype=dtype), torch.ones(rows, tokens))
            velocity = model.flow(latents, torch.zeros(rows), torch.zeros(rows, dtype=torch.bool))
            return posterior, velocity, model.image_latents(latents)

        held = [saved_bytes(functools.partial(forward, rows), model.parameters()) for rows in (1, 2)]
    assert stated.trainable == sum(p.numel() for p in model.parameters())
    assert stated.activation_bytes == pytest.approx(held[1] - held[0], rel=0.02)
    assert stated.training_flops == pytest.approx(training_flops(networks), rel=0.001)


def test_a_later_stage_has_its_own() -> None:
    first, second = get("igligen_xl", "paper").footprint, get("igligen_xl:1024", "paper").footprint
    assert second.training_flops > 4 * first.training_flops
    assert second.trainable == first.trainable
    assert first.checkpoint_bytes(ema=False) == 12 * 1_812_438_988
    assert first.checkpoint_bytes(ema=True) == 16 * 1_812_438_988


def test_a_training_under_zero_3_in_this_process_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    monkeypatch.setattr(torch.nn.functional, "linear", zero3_linear_wrap)
    layer = torch.nn.Linear(8, 4, device="meta").requires_grad_(False)
    x = torch.zeros(3, 8, device="meta", requires_grad=True)
    assert saved_bytes(lambda: layer(x), layer.parameters()) == 0, "frozen weights need no inputs"


def test_what_is_saved_is_counted_once_and_parameters_are_not() -> None:
    layer = torch.nn.Linear(8, 4, device="meta")
    x = torch.zeros(3, 8, device="meta", requires_grad=True)
    assert saved_bytes(lambda: layer(x), layer.parameters()) == 3 * 8 * 4
    assert saved_bytes(lambda: (layer(x).exp() * 2).sum(), layer.parameters()) == (3 * 8 + 3 * 4) * 4
    query = torch.zeros(1, 2, 5, 16, device="meta", requires_grad=True)
    attended = saved_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query), [])
    assert attended == 2 * query.nbytes, "queries, keys and values are one here, the output another; no scores"
