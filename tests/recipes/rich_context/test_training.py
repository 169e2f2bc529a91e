"""Profiles, drops, the loss, and what learns."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atelier.models.grounded_unet import is_adapter_key
from atelier.recipes.registry import get, predecessor_of, profiles
from atelier.recipes.rich_context_objective import TEXTS
from atelier.recipes.sdxl_text import SDXLText
from atelier.sampling.region_text import region_reader
from atelier.training.engine import to_device
from atelier.training.protocol import Draws
from tests.recipes.rich_context.pictures import encoded, text_of


def test_sd15_is_the_published_variant() -> None:
    """What the facts, section 2.2, say differs, and nothing besides."""
    for profile, differing in (
        ("paper", {"base_model", "family", "guidance", "train"}),
        ("parity", {"base_model", "family", "guidance", "train"}),
        ("laptop", {"family"}),
    ):
        first, second = get("rich_context", profile).config, get("rich_context:sd15", profile).config
        ours, theirs = first.model_dump(), second.model_dump()
        assert {field for field in ours if ours[field] != theirs[field]} == differing
        changed = {field for field in ours["train"] if ours["train"][field] != theirs["train"][field]}
        assert changed == ({"batch_size", "micro_batch", "lr"} if "train" in differing else set())
    paper = get("rich_context:sd15", "paper").config
    assert (paper.train.batch_size, paper.train.lr, paper.train.weight_decay) == (512, 2e-5, 1e-5)
    assert (paper.guidance, paper.train.ema_decay, paper.train.accumulation) == (7.5, 0.99, 16)
    assert paper.base_model == "hf://stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert predecessor_of("rich_context:sd15") == "", "it starts from nothing"
    assert profiles("rich_context") == ("paper", "parity", "laptop")


class Recorder(torch.nn.Module):
    """Stands where the UNet stands and keeps what it was called with; predicts zeros."""

    def forward(self, noised: torch.Tensor, timesteps: torch.Tensor, prompt: torch.Tensor, **more: Any) -> Any:
        self.prompt, self.more = prompt, more

        class Output:
            sample = torch.zeros_like(noised)

        return Output


def asked(name: str, base: Path, samples: list[dict[str, Any]], rows: int, **given: Any) -> Recorder:
    recipe = get(name, "laptop", given)
    objective = recipe.objective(base)
    model = Recorder()
    batch = objective.collate(samples[:1] * rows)
    objective.loss(model, batch, Draws(0, [(0, i) for i in range(rows)]), 0.0)
    return model


def without_caption(name: str, base: Path) -> torch.Tensor:
    """[T, D]: what stands for a dropped caption, as its family samples without a prompt."""
    text = text_of(name, base)
    states = text.captions([""])["prompt"][0]
    return torch.zeros_like(states) if isinstance(text, SDXLText) else states


def test_the_states_of_no_words_are_read_by_encoders_in_half_precision_that_go(
    name: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight ranks of SDXL's in float32 would be 26 GB."""
    family = get(name, "laptop").config.family
    kind, opened = TEXTS[family], []

    class Seen(kind):  # type: ignore[valid-type, misc]
        @classmethod
        def load(cls, *given: Any, **more: Any) -> Any:
            made = kind.load(*given, **more)
            opened.extend((weakref.ref(encoder), encoder.dtype) for encoder in made.encoders)
            return made

    monkeypatch.setitem(TEXTS, family, Seen)
    objective: Any = get(name, "laptop").objective(base)
    gc.collect()
    assert [dtype for _, dtype in opened] == [torch.float16] * (2 if family == "sdxl" else 1)
    assert not any(encoder() for encoder, _ in opened)
    text = kind.load(base)
    wanted = region_reader(text.tokenizers, text.encoders).encode([""]).states[0]
    assert np.allclose(objective._no_words, wanted, atol=5e-3)
    assert np.abs(wanted).max() > 1


def test_layout_and_caption_are_dropped_independently_by_count(
    name: str, base: Path, samples: list[dict[str, Any]]
) -> None:
    model = asked(name, base, samples, 2000, drop_boxes=0.2, drop_caption=0.3)
    layout = (model.more["cross_attention_kwargs"]["gligen"]["cells"] >= 0).flatten(1).any(1)
    absent = without_caption(name, base)
    caption = (model.prompt - absent).abs().flatten(1).amax(1) > 0.01  # the objective reads "" in half precision
    assert not caption.all()
    for has_layout in (True, False):
        for has_caption in (True, False):
            share = (0.8 if has_layout else 0.2) * (0.7 if has_caption else 0.3)
            found = ((layout == has_layout) & (caption == has_caption)).float().mean().item()
            assert found == pytest.approx(share, abs=0.04)
    conditions = model.more["added_cond_kwargs"]
    if name == "rich_context:sd15":
        assert conditions is None
        assert "pooled" not in samples[0]
    else:
        assert torch.equal(caption, conditions["text_embeds"].abs().sum(1) > 0)
        assert conditions["time_ids"][0].tolist() == [64, 64, 0, 0, 64, 64]


def test_parity_drops_the_whole_batchs_captions_and_no_pooled_text(
    name: str, base: Path, samples: list[dict[str, Any]]
) -> None:
    """Dropped are zeros on either base, as upstream has it."""
    for drop in (0.0, 1.0):
        model = asked(name, base, samples, 4, parity=True, drop_caption=drop)
        assert bool(model.prompt.abs().sum() > 0) is (drop == 0)
        if name == "rich_context":
            assert (model.more["added_cond_kwargs"]["text_embeds"].abs().sum(1) > 0).all()
    half = asked(name, base, samples, 6, parity=True, drop_caption=0.5).prompt.abs().sum((1, 2)) > 0
    assert bool(half.all()) or not bool(half.any()), "one draw for all"


def test_parity_makes_other_features(name: str, base: Path, samples: list[dict[str, Any]]) -> None:
    upstreams = encoded(name, base, parity=True)
    assert (upstreams[1]["cells"] == 0).any(), "no box of upstream's reaches the last row"
    assert upstreams[1]["wordless"].tolist() == [0]
    own, parity = (get(name, "laptop", {"parity": each}).encoding for each in (False, True))
    assert own != parity


def test_the_whole_batch_goes_to_the_models_device_and_nothing_comes_back(
    name: str, base: Path, samples: list[dict[str, Any]]
) -> None:
    """On the meta device, which like a GPU computes with no tensor of the CPU, and tells no value to the host."""
    objective = get(name, "laptop", {"inside_weight": 1.0}).objective(base)
    device = torch.device("meta")
    batch = to_device(objective.collate(samples), device)
    held = [*batch.values(), *batch["regions"].values()]
    assert all(value.device == device for value in held if isinstance(value, torch.Tensor))
    unet = objective.build().to(device)
    loss = objective.loss(unet, batch, Draws(0, [(0, i) for i in range(3)], device), 0.0)["loss"]
    loss.backward()
    assert loss.device == device


def test_a_fresh_one_is_its_base_and_learns(name: str, base: Path, samples: list[dict[str, Any]]) -> None:
    objective = get(name, "laptop", {"drop_boxes": 0.0, "drop_caption": 0.0}).objective(base)
    torch.manual_seed(0)
    unet = objective.build()
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert (
        trained
        == objective.trainable_state(unet).keys()
        == {n for n, _ in unet.named_parameters() if is_adapter_key(n)}
    )
    assert set(objective.gauges(unet).values()) == {0.0}
    batch = objective.collate(samples)
    without = {**batch, "regions": {**batch["regions"], "cells": torch.full_like(batch["regions"]["cells"], -1)}}
    draws = [(0, i) for i in range(3)]
    before = objective.loss(unet, batch, Draws(0, draws), 0.0)["loss"]
    assert torch.equal(before, objective.loss(unet, without, Draws(0, draws), 0.0)["loss"])
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(12):
        loss = objective.loss(unet, batch, Draws(0, draws), 0.0)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < before.item() * 0.98
    assert min(objective.gauges(unet).values()) > 0
    assert objective.flops_per_sample() == pytest.approx(get(name, "laptop").footprint.training_flops, rel=0.2)
