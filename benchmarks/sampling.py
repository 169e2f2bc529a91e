"""Grounded sampling beside diffusers' own GLIGEN pipeline: equal weights, equal noise, equal latents.

The UNet is SD 1.4's with every width, the heads and every number of tokens divided by four (channels 80 to 320 in two
heads of the original's sizes, a latent of 32 × 32, 20 text tokens, all its 16 transformer blocks), which keeps the
proportions of convolutions, attention, text and fusers. One prompt, one picture, four boxes in 30 slots. diffusers
fixes the slots and the position net's width: both are the full model's, 1/400 of a step here, 1/12,000 there.
"""

import warnings
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionGLIGENPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from atelier.models.grounded_unet import adapter_parameters, attach
from atelier.recipes.twins.make import WORDS
from atelier.recipes.twins.text import make_tokenizer
from atelier.recipes.twins.vae import make_vae
from atelier.sampling import gligen_sd
from benchmarks.harness import Result, side_by_side

STEPS, BETA, LATENT, TEXT_TOKENS, WIDTH = 20, 0.3, 32, 20, 192
SIDE = 4 * LATENT
"""Pixels: the bench's autoencoder has f = 4; it takes no part, both give latents."""
BOXES = [[0.05, 0.55, 0.45, 0.85], [0.5, 0.55, 0.95, 0.85], [0.1, 0.0, 0.4, 0.3], [0.6, 0.1, 0.85, 0.3]]
PHRASES = ["a one", "a two", "a three", "a four"]


def _unet() -> UNet2DConditionModel:
    """SD 1.4's UNet at a quarter of its widths, with open gates."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(80, 160, 320, 320),
        layers_per_block=2,
        attention_head_dim=2,  # diffusers' historic name: the number of heads
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
    )
    attach(unet)
    for name, parameter in adapter_parameters(unet).items():
        if "alpha" in name:
            parameter.data.fill_(0.5)
    return unet.eval()


def _pipelines() -> tuple[Any, Any]:
    """(diffusers', ours), the same weights in both."""
    tokenizer = make_tokenizer(WORDS, TEXT_TOKENS)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    shared = (make_vae(SIDE).eval(), CLIPTextModel(config).eval(), tokenizer)
    own = _unet()
    # Not from_config: that would leave out attention_type, which came after the UNet was made.
    gated = UNet2DConditionModel(**{name: value for name, value in own.config.items() if not name.startswith("_")})
    gated.load_state_dict(own.state_dict())

    def scheduler() -> DDIMScheduler:
        return DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers calls its own pipeline deprecated
        theirs = StableDiffusionGLIGENPipeline(
            *shared, gated.eval(), scheduler(), None, None, requires_safety_checker=False
        )
    ours = gligen_sd.StableDiffusionGLIGENPipeline(*shared, own, scheduler())
    for pipeline in (theirs, ours):
        pipeline.set_progress_bar_config(disable=True)
    return theirs, ours


def gligen_sample_vs_diffusers() -> Result:
    """Seconds of diffusers' StableDiffusionGLIGENPipeline over ours, beta 0.3; both give the same latents to 1e-4."""
    theirs, ours = _pipelines()

    def latents(pipeline: Any) -> Tensor:
        made: Tensor = pipeline(
            "a one and a two",
            height=SIDE,
            width=SIDE,
            num_inference_steps=STEPS,
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
    slow, fast = side_by_side(lambda: latents(theirs), lambda: latents(ours), rounds=5)
    return Result(
        "gligen_sample_vs_diffusers",
        slow / fast,
        "x",
        bar=1.2,
        note=f"{STEPS} steps, beta {BETA}: {slow:.3f} s and {fast:.3f} s; latents {apart:.1g} apart",
    )


BENCHES = {"gligen_sample_vs_diffusers": gligen_sample_vs_diffusers}
