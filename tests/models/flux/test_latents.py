"""FLUX's tokens, against diffusers' own packing."""

import pytest
import torch
from diffusers import FluxPipeline

from atelier.errors import ConfigError
from atelier.models.flux.latents import image_ids, pack, text_ids, unpack


def test_tokens_are_diffusers() -> None:
    latents = torch.randn(2, 4, 8, 12)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 4, 8, 12))
    ids = FluxPipeline._prepare_latent_image_ids(2, 4, 6, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids(8, 12), ids)
    assert not text_ids(7).any()
    assert text_ids(7).shape == (7, 3)


def test_back_are_the_same_latents() -> None:
    latents = torch.randn(2, 4, 8, 12)
    assert torch.equal(unpack(pack(latents), 8, 12), latents)


def test_odd_sides_and_other_sizes_are_errors() -> None:
    with pytest.raises(ConfigError, match="make no tokens"):
        pack(torch.zeros(1, 4, 7, 8))
    with pytest.raises(ConfigError, match=r"24 tokens make no latents of 8 × 8"):
        unpack(torch.zeros(1, 24, 16), 8, 8)
