"""SDXL's own arguments beside GLIGEN's: positions, sizes, embeddings, precision, threads."""

import threading
from typing import Any

import numpy as np
import pytest
import torch

from atelier.sampling.folder import open_pipeline
from atelier.sampling.gligen_sdxl import StableDiffusionXLGLIGENPipeline
from tests.sampling.tiny_sd import BOX
from tests.sampling.tiny_sdxl import write

GROUNDED: dict[str, Any] = {"gligen_boxes": [BOX], "gligen_phrases": ["a one"], "gligen_scheduled_sampling_beta": 0.5}
SETTINGS: dict[str, Any] = {"num_inference_steps": 4, "height": 48, "width": 80, "output_type": "latent"}


@pytest.fixture
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXLGLIGENPipeline:
    made = open_pipeline(write(tmp_path_factory.mktemp("sdxl")))
    assert isinstance(made, StableDiffusionXLGLIGENPipeline)
    made.set_progress_bar_config(disable=True)
    return made


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_positions_are_the_stock_pipelines(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    by_name = pipeline("a seven", generator=noise(), **SETTINGS, **GROUNDED).images
    by_place = pipeline("a seven", None, 48, 80, 4, generator=noise(), output_type="latent", **GROUNDED).images
    assert by_name.shape == (1, 4, 12, 20)
    assert torch.equal(by_name, by_place)


def test_embeddings_instead_of_prompts(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    expected = pipeline("a seven", negative_prompt="a one", generator=noise(), **SETTINGS, **GROUNDED).images
    states, negative, pooled, negative_pooled = pipeline.encode_prompt("a seven", negative_prompt="a one")
    made = pipeline(
        prompt_embeds=states,
        negative_prompt_embeds=negative,
        pooled_prompt_embeds=pooled,
        negative_pooled_prompt_embeds=negative_pooled,
        generator=noise(),
        **SETTINGS,
        **GROUNDED | {"gligen_phrases": None, "gligen_phrase_embeds": pipeline._embed_phrases(["a one"])},
    ).images
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_parts_of_different_precision(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    expected = pipeline("a seven", generator=noise(), **SETTINGS, **GROUNDED).images
    pipeline.unet.to(torch.bfloat16)
    made = pipeline("a seven", generator=noise(), **SETTINGS, **GROUNDED).images
    assert (made - expected).abs().mean() < 0.1 * expected.abs().mean()
    pipeline.text_encoder.to(torch.bfloat16)
    picture = pipeline("a seven", generator=noise(), **SETTINGS | {"output_type": "pil"}, **GROUNDED).images[0]
    assert picture.size == (80, 48)
    pipeline.vae.to(torch.float16)  # SDXL's wants float32: diffusers casts it there and back
    again = pipeline("a seven", generator=noise(), **SETTINGS | {"output_type": "pil"}, **GROUNDED).images[0]
    assert np.abs(np.asarray(again).astype(int) - np.asarray(picture)).max() <= 2
    assert pipeline.vae.dtype == torch.float16


def test_threads_share_a_pipeline(pipeline: StableDiffusionXLGLIGENPipeline) -> None:
    kinds: list[dict[str, Any]] = [GROUNDED, {}, {**GROUNDED, "gligen_decay": 0.5, "num_inference_steps": 7}]
    alone = [pipeline("a seven", generator=noise(), **SETTINGS | kind).images for kind in kinds]
    together: dict[int, torch.Tensor] = {}

    def one(number: int) -> None:
        together[number] = pipeline("a seven", generator=noise(), **SETTINGS | kinds[number]).images

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(kinds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        torch.testing.assert_close(together[number], expected, atol=1e-5, rtol=1e-5)
