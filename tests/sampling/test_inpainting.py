"""Inpainting: what lies outside the boxes stays, for any aspect, with 4 and 9 channels."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from atelier.errors import ConfigError
from atelier.sampling.gligen_sd import StableDiffusionGLIGENPipeline
from atelier.sampling.gligen_sdxl import StableDiffusionXLGLIGENPipeline
from atelier.sampling.inpainting import encode, fit, keep_mask
from tests.sampling.tiny_sd import make_pipeline, make_scheduler

BOX = [0.5, 0.0, 1.0, 0.5]


def picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(pipe: Any, **more: Any) -> torch.Tensor:
    settings = {
        "num_inference_steps": 4,
        "height": 32,
        "width": 96,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
        "gligen_boxes": [BOX],
        "gligen_phrases": ["a one"],
    }
    return pipe("a seven", **(settings | more)).images


def test_the_mask_takes_widths_along_x() -> None:
    mask = keep_mask([BOX], 4, 8)
    assert mask.tolist() == [[[1, 1, 1, 1, 0, 0, 0, 0]] * 2 + [[1] * 8] * 2]
    assert keep_mask([[0.99, 0.99, 1.0, 1.0]], 4, 8).sum() == 31  # a box smaller than an element still gets one


def test_the_picture_is_cut_at_its_centre_to_the_aspect() -> None:
    wide = Image.new("RGB", (300, 100), "black")
    wide.paste("white", (100, 0, 200, 100))
    assert fit(wide, 64, 64).mean() > 0.95
    assert fit(wide, 64, 192).shape == (3, 64, 192)


@pytest.mark.parametrize("euler", [False, True])
def test_outside_the_boxes_is_the_picture_inside_is_not(euler: bool) -> None:
    pipe = make_pipeline()
    if euler:
        pipe.scheduler = EulerDiscreteScheduler.from_config(make_scheduler().config)
    image = picture(96, 32)
    made = sample(pipe, gligen_inpaint_image=image, num_images_per_prompt=2)
    original = encode(pipe.vae, image, 32, 96)
    keep = keep_mask([BOX], 8, 24).bool().expand(2, 4, -1, -1)
    assert made.shape == (2, 4, 8, 24)
    assert torch.equal(made[keep], original.expand(2, -1, -1, -1)[keep])
    assert (made[~keep] - original.expand(2, -1, -1, -1)[~keep]).abs().mean() > 0.1
    assert torch.equal(made, sample(pipe, gligen_inpaint_image=image, num_images_per_prompt=2))


@torch.no_grad()
def test_against_a_loop_written_out() -> None:
    """Without guidance or grounding in effect (beta 0): blend, predict, step."""
    pipe, image = make_pipeline(), picture(96, 32)
    start, text = torch.randn(1, 4, 8, 24), torch.randn(1, 16, 32)
    common = {"prompt_embeds": text, "guidance_scale": 1.0, "latents": start}
    made = pipe(
        num_inference_steps=4,
        height=32,
        width=96,
        output_type="latent",
        gligen_boxes=[BOX],
        gligen_phrases=["a one"],
        gligen_scheduled_sampling_beta=0.0,
        gligen_inpaint_image=image,
        **common,
    ).images
    scheduler, original, keep = make_scheduler(), encode(pipe.vae, image, 32, 96), keep_mask([BOX], 8, 24)
    scheduler.set_timesteps(4)
    latents = start
    for timestep in scheduler.timesteps:
        known = scheduler.add_noise(original, start, timestep[None])
        latents = known * keep + latents * (1 - keep)
        latents = scheduler.step(pipe.unet(latents, timestep, text).sample, timestep, latents).prev_sample
    torch.testing.assert_close(made, original * keep + latents * (1 - keep), atol=1e-5, rtol=1e-4)


def test_an_inpainting_unet_reads_the_masked_latents_and_the_mask() -> None:
    """Nine channels: noisy latents, masked latents, mask (1 is kept), in both halves of guidance."""
    pipe, image, seen = make_pipeline(in_channels=9), picture(96, 32), []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        made = sample(pipe, gligen_inpaint_image=image)
    finally:
        hook.remove()
    keep = keep_mask([BOX], 8, 24)[None]
    assert made.shape == (1, 4, 8, 24)
    assert len(seen) == 4
    for given in seen:
        assert given.shape == (2, 9, 8, 24)
        torch.testing.assert_close(given[:, 4:8], (encode(pipe.vae, image, 32, 96) * keep).expand(2, -1, -1, -1))
        assert torch.equal(given[:, 8:], keep.expand(2, -1, -1, -1))


def test_a_picture_and_boxes_a_prompt() -> None:
    pipe, images = make_pipeline(), [picture(96, 32), Image.new("RGB", (50, 50), "red")]
    made = pipe(
        ["a one", "a two"],
        num_inference_steps=2,
        height=32,
        width=32,
        output_type="latent",
        gligen_boxes=[[BOX], []],
        gligen_phrases=[["a one"], []],
        gligen_inpaint_image=images,
    ).images
    # No boxes: nothing is painted.
    torch.testing.assert_close(made[1:], encode(pipe.vae, images[1], 32, 32))
    assert not torch.allclose(made[:1], encode(pipe.vae, images[0], 32, 32), atol=1e-2)


@pytest.mark.parametrize(
    ("channels", "more", "named"),
    [
        (4, {"gligen_inpaint_image": picture(32, 32), "gligen_boxes": None, "gligen_phrases": None}, "without boxes"),
        (4, {"gligen_inpaint_image": [picture(32, 32)] * 2}, "2 inpainting images for 1 prompts"),
        (4, {"gligen_inpaint_image": "a.png"}, "is a str"),
        (9, {}, "it is an inpainting model"),
        (8, {"gligen_inpaint_image": picture(32, 32)}, "takes 8 channels"),
    ],
)
def test_what_cannot_be_inpainted_is_named(channels: int, more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        sample(make_pipeline(in_channels=channels), **more)


def test_sdxl_refuses() -> None:
    assert not issubclass(StableDiffusionXLGLIGENPipeline, StableDiffusionGLIGENPipeline)
    pipe = object.__new__(StableDiffusionXLGLIGENPipeline)
    with pytest.raises(ConfigError, match="given to an SDXL pipeline"):
        StableDiffusionXLGLIGENPipeline.__call__(pipe, "a", gligen_inpaint_image=picture(8, 8))
