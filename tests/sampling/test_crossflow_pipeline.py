"""CrossFlow's pipeline on tiny networks and the shipped twin's autoencoder and language model."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from atelier.errors import ConfigError
from atelier.models.crossflow.configs import CrossFlowConfig
from atelier.sampling.crossflow import CrossFlowPipeline
from tests.models.crossflow.tiny import DIMR, DIT, TEXT, base, made

CLIP = TEXT | {"width": 128, "tokens": 16}


def _pipeline(config: CrossFlowConfig = DIMR) -> CrossFlowPipeline:
    return CrossFlowPipeline.around(base(), made(CrossFlowConfig(config.backbone, config.flow, CLIP, (4, 8, 8), None)))


@pytest.fixture(scope="module")
def pipeline() -> CrossFlowPipeline:
    return _pipeline()


def _seeds(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


SETTINGS = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np"}


@pytest.mark.parametrize("config", [DIT, DIMR], ids=["dit", "dimr"])
def test_a_picture_depends_on_its_own_seed_and_prompt_alone(config: CrossFlowConfig) -> None:
    drawing = _pipeline(config)
    prompts = ["a three above a seven", "a one above a two", "a three above a seven"]
    pictures = drawing(prompts, generator=_seeds(5, 6, 7), **SETTINGS).images
    assert pictures.shape == (3, 32, 32, 3)
    alone = drawing(prompts[1], generator=_seeds(6), **SETTINGS).images
    np.testing.assert_allclose(alone[0], pictures[1], atol=1e-5)
    assert np.abs(pictures[0] - pictures[2]).max() > 1e-3


def test_a_released_run_is_eulers(pipeline: CrossFlowPipeline) -> None:
    """The upstream grid and step, written out."""
    start = pipeline.text_latents("a nine", generator=_seeds(1))
    x, steps, end = start.clone(), 4, 1 - 1e-5
    with torch.no_grad():
        for number in range(steps):
            t = torch.full((1,), end * number / (steps - 1))
            text, null = (pipeline.flow(x, t, torch.tensor([flag]))[-1] for flag in (False, True))
            x = x + (null + 7 * (text - null)) * end / steps
    found = pipeline(
        latents=start, num_inference_steps=steps, guidance_scale=7, solver="euler_released", output_type="latent"
    ).images
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_several_pictures_a_prompt_and_a_callback(pipeline: CrossFlowPipeline) -> None:
    seen: list[tuple[int, float]] = []
    pictures = pipeline(
        ["a two", "a six"],
        num_images_per_prompt=2,
        generator=_seeds(1, 2, 3, 4),
        num_inference_steps=2,
        callback_on_step_end=lambda _, step, time, state: seen.append((step, time)),
        return_dict=False,
    )[0]
    assert len(pictures) == 4
    assert pictures[0].size == (32, 32)
    assert seen == [(0, 0.0), (1, 0.5)]


def test_bad_and_odd_prompts(pipeline: CrossFlowPipeline, caplog: pytest.LogCaptureFixture) -> None:
    """Empty, 400 words, other scripts: pictures, and a word about what was cut."""
    with caplog.at_level(logging.WARNING, logger="atelier"):
        pictures = pipeline(["", "seven " * 400, "七つの海", "🦆"], generator=_seeds(1, 2, 3, 4), **SETTINGS).images
    assert np.isfinite(pictures).all()
    assert any(
        "386 tokens of this prompt are not seen: seven seven" in record.getMessage() for record in caplog.records
    )
    assert sum("this prompt is empty, and says nothing" in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(ConfigError, match="42 is no prompt"):
        pipeline([42])
    with pytest.raises(ConfigError, match="prompts or latents"):
        pipeline()
    with pytest.raises(ConfigError, match="at least one"):
        pipeline([])
    with pytest.raises(ConfigError, match="no flow solver 'rk4'"):
        pipeline("a two", solver="rk4")
    with pytest.raises(ConfigError, match="a guidance of nan is no number"):
        pipeline("a two", guidance_scale=float("nan"))


def test_another_language_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="states are 128 wide, this CrossFlow reads 32"):
        CrossFlowPipeline.around(base(), made(DIMR))("a two")


def test_parts_of_two_models_are_refused(pipeline: CrossFlowPipeline) -> None:
    larger = made(CrossFlowConfig("dit", DIT.flow | {"latent_size": 16}, CLIP, (4, 16, 16), None))
    with pytest.raises(ConfigError, match=r"text encoder's latents are \[4, 8, 8\], the flow network's \[4, 16, 16\]"):
        CrossFlowPipeline(**pipeline.components | {"flow": larger.flow})


def test_interpolation_begins_and_ends_at_its_prompts(pipeline: CrossFlowPipeline) -> None:
    strip = pipeline.interpolate("a two", "a seven", 5, torch.Generator().manual_seed(3), **SETTINGS).images
    ends = pipeline(["a two", "a seven"], generator=torch.Generator().manual_seed(3), **SETTINGS).images
    assert strip.shape == (5, 32, 32, 3)
    parts, sizes = CrossFlowPipeline(**pipeline.components), list[int]()
    parts.flow.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    parts.set_progress_bar_config(disable=True)
    again = parts.interpolate("a two", "a seven", 5, torch.Generator().manual_seed(3), decode_batch=2, **SETTINGS)
    np.testing.assert_allclose(again.images, strip, atol=1e-5)
    assert max(sizes) == 4, "two pictures, each with its null half"
    np.testing.assert_allclose(strip[[0, -1]], ends, atol=1e-5)


def test_arithmetic_gives_every_prompt_and_the_sum(pipeline: CrossFlowPipeline) -> None:
    generator = torch.Generator().manual_seed(3)
    pictures = pipeline.arithmetic("a two", ["a seven"], ["a one"], generator, **SETTINGS).images
    assert len(pictures) == 4
    assert all(np.abs(pictures[-1] - other).max() > 1e-3 for other in pictures[:-1])
    with pytest.raises(ConfigError, match="nothing to add"):
        pipeline.arithmetic("a two")


def test_a_saved_pipeline_opens_again(pipeline: CrossFlowPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    again = CrossFlowPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    found, wanted = (p("a two", generator=_seeds(1), **SETTINGS).images for p in (again, pipeline))
    np.testing.assert_array_equal(found, wanted)
