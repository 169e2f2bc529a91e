"""Grounded sampling beside diffusers' own GLIGEN pipeline: equal weights, equal noise, equal latents.

One prompt, one picture, four boxes in diffusers' 30 slots, guidance, the published share of grounded steps.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionGLIGENPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from atelier.models.grounded_unet import adapter_parameters, attach
from atelier.recipes.twins.make import WORDS
from atelier.recipes.twins.text import make_tokenizer
from atelier.recipes.twins.vae import make_vae
from atelier.sampling import gligen_sd
from benchmarks.harness import Bench, Result, side_by_side

STEPS, BETA = 20, 0.3
BOXES = [[0.05, 0.55, 0.45, 0.85], [0.5, 0.55, 0.95, 0.85], [0.1, 0.0, 0.4, 0.3], [0.6, 0.1, 0.85, 0.3]]
PHRASES = ["a one", "a two", "a three", "a four"]


@dataclass(frozen=True)
class Size:
    """A model small enough for a CPU.

    Attributes:
        unet: the UNet's configuration, with its latent's side (``sample_size``) and its text's width.
        tokens: of the text.
        layers: of the text encoder.
    """

    unet: dict[str, Any]
    tokens: int
    layers: int


QUARTER = Size(
    {
        "sample_size": 32,
        "block_out_channels": (80, 160, 320, 320),
        "layers_per_block": 2,
        "attention_head_dim": 2,  # diffusers' historic name: the number of heads
        "norm_num_groups": 16,
        "cross_attention_dim": 192,
    },
    tokens=20,
    layers=12,
)
"""SD 1.4 with every width, the heads and every number of tokens divided by four.

Channels 80 to 320 in two heads of the original's sizes, a latent of 32 × 32, 20 text tokens, all 16 transformer blocks:
convolutions, attention, text and fusers keep their proportions. diffusers fixes the slots and the position net's inner
width, which are the full model's: its tokens are 1/400 of a step's operations here, 1/12,000 there.
"""

TINY = Size(
    {
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "cross_attention_dim": 768,
    },
    tokens=16,
    layers=1,
)
"""A UNet of 64 latent pixels under SD's own text width and position net, which are large beside it."""


def _pipelines(size: Size) -> tuple[Any, Any]:
    """(diffusers', ours), the same weights in both; the gates are open."""
    torch.manual_seed(0)
    own = attach(UNet2DConditionModel(**size.unet))
    for name, parameter in adapter_parameters(own).items():
        if "alpha" in name:
            parameter.data.fill_(0.5)
    # Not from_config: that would leave out attention_type, which came after the UNet was made.
    gated = UNet2DConditionModel(**{name: value for name, value in own.config.items() if not name.startswith("_")})
    gated.load_state_dict(own.state_dict())
    tokenizer = make_tokenizer(WORDS, size.tokens)
    # The autoencoder (f = 4) takes no part: both give latents.
    shared = (make_vae(4 * size.unet["sample_size"]).eval(), _text_encoder(size, tokenizer), tokenizer)

    def scheduler() -> DDIMScheduler:
        return DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers calls its own pipeline deprecated
        theirs = StableDiffusionGLIGENPipeline(
            *shared, gated.eval(), scheduler(), None, None, requires_safety_checker=False
        )
    ours = gligen_sd.StableDiffusionGLIGENPipeline(*shared, own.eval(), scheduler())
    for pipeline in (theirs, ours):
        pipeline.set_progress_bar_config(disable=True)
    return theirs, ours


def _text_encoder(size: Size, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    width = size.unet["cross_attention_dim"]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=size.layers,
        num_attention_heads=12,
        max_position_embeddings=size.tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def _compared(bench: str, size: Size, bar: float | None) -> Result:
    theirs, ours = _pipelines(size)

    def latents(pipeline: Any) -> Tensor:
        made: Tensor = pipeline(
            "a one and a two",
            num_inference_steps=STEPS,
            height=4 * size.unet["sample_size"],
            width=4 * size.unet["sample_size"],
            gligen_scheduled_sampling_beta=BETA,
            gligen_boxes=BOXES,
            gligen_phrases=PHRASES,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images
        return made

    apart = float((latents(theirs) - latents(ours)).abs().max())
    if not apart <= 1e-4:
        raise AssertionError(f"the latents are {apart:.3g} apart: the two do not sample the same")
    slow, fast = side_by_side(lambda: latents(theirs), lambda: latents(ours), rounds=7)
    note = f"{STEPS} steps, beta {BETA}: {slow:.3f} s and {fast:.3f} s; latents {apart:.1g} apart"
    return Result(bench, round(slow / fast, 3), "x", bar=bar, note=note)


def gligen_sample_vs_diffusers() -> Result:
    """Seconds of diffusers' StableDiffusionGLIGENPipeline over ours, beta 0.3; both give the same latents to 1e-4."""
    return _compared("gligen_sample_vs_diffusers", TINY, bar=1.2)


def gligen_sample_vs_diffusers_in_proportion() -> Result:
    """The same in SD 1.4's proportions: what is left of it where convolutions and attention are nearly everything."""
    return _compared("gligen_sample_vs_diffusers_in_proportion", QUARTER, bar=None)


BENCHES: dict[str, Bench] = {
    "gligen_sample_vs_diffusers": gligen_sample_vs_diffusers,
    "gligen_sample_vs_diffusers_in_proportion": gligen_sample_vs_diffusers_in_proportion,
}
