"""The grounded SDXL pipeline: exact against its parent, boxes in every form, the model left as found."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline

from atelier.errors import ConfigError
from atelier.sampling.gligen_sdxl import StableDiffusionXLGLIGENPipeline
from tests.sampling.tiny_sdxl import write

BOX = [0.1, 0.2, 0.5, 0.6]
SETTINGS = {"num_inference_steps": 3, "height": 64, "width": 64, "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder whose fusers do something."""
    return write(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def pipeline(exported: Path) -> StableDiffusionXLGLIGENPipeline:
    made = StableDiffusionXLGLIGENPipeline.from_pretrained(exported)
    made.set_progress_bar_config(disable=True)
    return made


def latents(pipe: StableDiffusionXLPipeline, prompt: str | list[str] = "a seven", **more: object) -> torch.Tensor:
    count = 1 if isinstance(prompt, str) else len(prompt)
    generators = [torch.Generator().manual_seed(i) for i in range(count * int(more.get("num_images_per_prompt", 1)))]
    return pipe(prompt, generator=generators, output_type="latent", **SETTINGS | more).images


def test_without_boxes_it_is_its_parent(exported: Path, pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    stock = DiffusionPipeline.from_pretrained(exported)
    stock.set_progress_bar_config(disable=True)
    assert type(stock) is StableDiffusionXLPipeline
    # Equal bits are the UNet's test (test_sharing.py). Here, once, in a busy process, the last bits of the two
    # pipelines differed; nobody found out why.
    expected = latents(stock)
    torch.testing.assert_close(latents(pipeline), expected, rtol=0, atol=1e-4)
    unbound = latents(pipeline, gligen_boxes=[BOX], gligen_phrases=["a seven"], gligen_scheduled_sampling_beta=0.0)
    torch.testing.assert_close(unbound, expected, rtol=0, atol=1e-4)


def test_boxes_change_the_picture_and_the_place_matters(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    grounded = latents(pipeline, gligen_boxes=[BOX], gligen_phrases=["a seven"], gligen_scheduled_sampling_beta=1.0)
    moved = latents(
        pipeline, gligen_boxes=[[0.5, 0.5, 0.9, 0.9]], gligen_phrases=["a seven"], gligen_scheduled_sampling_beta=1.0
    )
    assert not torch.allclose(grounded, latents(pipeline), atol=1e-4)
    assert not torch.allclose(grounded, moved, atol=1e-4)


def test_the_fusers_stop_after_their_share_of_the_steps(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    """beta 0.4 of 5 steps: the UNet is called with grounding twice, then without."""
    seen: list[bool] = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(bool(kwargs.get("cross_attention_kwargs"))), with_kwargs=True
    )
    tokens = []
    net = pipeline.unet.position_net.linears.register_forward_hook(lambda *_: tokens.append(1))
    try:
        latents(
            pipeline,
            gligen_boxes=[BOX],
            gligen_phrases=["a one"],
            gligen_scheduled_sampling_beta=0.4,
            num_inference_steps=5,
        )
    finally:
        hook.remove(), net.remove()
    assert seen == [True, True, False, False, False]
    assert len(tokens) == 2  # once for the boxes, once for the null token; not once a step


def test_boxes_a_prompt_shared_boxes_and_none(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    own = {"gligen_scheduled_sampling_beta": 1.0}
    both = latents(pipeline, ["a one", "a two"], gligen_boxes=[[BOX], []], gligen_phrases=[["a one"], []], **own)
    alone = latents(pipeline, "a one", gligen_boxes=[BOX], gligen_phrases=["a one"], **own)
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-4)
    shared = latents(pipeline, ["a one", "a two"], gligen_boxes=[BOX], gligen_phrases=["a one"], **own)
    torch.testing.assert_close(shared[:1], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(shared[1:], both[1:], atol=1e-4)
    plain = pipeline("a two", generator=torch.Generator().manual_seed(1), output_type="latent", **SETTINGS).images
    torch.testing.assert_close(both[1:], plain, atol=1e-4, rtol=1e-4)


def test_several_images_a_prompt_and_no_guidance(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    own = {"gligen_boxes": [BOX], "gligen_phrases": ["a one"], "gligen_scheduled_sampling_beta": 1.0}
    assert latents(pipeline, num_images_per_prompt=2, **own).shape[0] == 2
    assert latents(pipeline, guidance_scale=1.0, **own).shape[0] == 1


def test_the_model_is_left_as_found(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    before = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    first = latents(pipeline, gligen_boxes=[BOX], gligen_phrases=["a one"], gligen_scheduled_sampling_beta=0.4)
    again = latents(pipeline, gligen_boxes=[BOX], gligen_phrases=["a one"], gligen_scheduled_sampling_beta=0.4)
    assert torch.equal(first, again)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.unet.state_dict().items())


@pytest.mark.parametrize(
    ("boxes", "phrases", "named"),
    [
        ([BOX], ["a one", "a two"], "1 boxes and 2 phrases"),
        ([[0.5, 0.2, 0.1, 0.6]], ["a one"], r"\[0.5, 0.2, 0.1, 0.6\]"),
        ([[0.1, 0.2, 1.5, 0.6]], ["a one"], "is not a box"),
        ([BOX] * 5, ["a one"] * 5, "5 boxes, more than the 4 slots"),
    ],
)
def test_bad_boxes_are_named(
    pipeline: StableDiffusionXLGLIGENPipeline, boxes: list[list[float]], phrases: list[str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        latents(pipeline, gligen_boxes=boxes, gligen_phrases=phrases, gligen_max_boxes=4)


def test_pictures_come_out(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    images = pipeline(
        "a seven",
        num_inference_steps=2,
        height=64,
        width=64,
        gligen_boxes=[BOX],
        gligen_phrases=["a seven"],
        generator=torch.Generator().manual_seed(0),
    ).images
    assert images[0].size == (64, 64)
    assert np.asarray(images[0]).std() > 0
