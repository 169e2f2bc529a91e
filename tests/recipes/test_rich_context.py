"""The recipe: what is stored of regions, whole batches, drops, the loss, export and other people's layers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from atelier.convert.regional_folder import unpack
from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import adapter_parameters, is_adapter_key
from atelier.models.regional.regions import map_regions
from atelier.models.regional.tokens import EncodedTexts, region_tokens
from atelier.recipes.registry import get
from atelier.recipes.sdxl_text import SDXLText
from atelier.sampling.folder import open_pipeline
from atelier.sampling.layout_input import PromptLayout, box_fault
from atelier.sampling.region_text import SEPARATOR, region_states
from atelier.storage.folder import OutputFolder
from atelier.storage.inputs import InputFolder
from atelier.training.protocol import Draws
from tests.recipes.twin import write_twin

OVERLAPPING = [[0.1, 0.1, 0.6, 0.6], [0.4, 0.4, 0.9, 0.9]]
PHRASES = ("a big seven", "a tiny three")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("base"))


def example(number: int, boxes: list[list[float]], phrases: tuple[str, ...]) -> RawExample:
    return RawExample(
        f"rich_{number}", b"", (64, 64), "a seven and a three", np.asarray(boxes, np.float32).reshape(-1, 4),
        np.ones(len(boxes), np.float32), phrases,
    )  # fmt: skip


EXAMPLES = [
    example(0, OVERLAPPING, PHRASES),
    example(1, [[0.0, 0.0, 1.0, 1.0]], ("a two",)),  # no background
    example(2, [], ()),
]


def encoded(base: Path, **given: Any) -> list[dict[str, Any]]:
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    made = get("rich_context", "laptop", given).encoder(base).encode(images, EXAMPLES)
    return [
        arrays | {"json": {"boxes": one.boxes.tolist()}, "epoch": 0, "index": i}
        for i, (arrays, one) in enumerate(zip(made, EXAMPLES, strict=True))
    ]


@pytest.fixture(scope="module")
def samples(base: Path) -> list[dict[str, Any]]:
    return encoded(base)


def test_what_is_the_same_in_every_picture_is_not_stored(samples: list[dict[str, Any]]) -> None:
    first, whole, bare = samples
    assert first["wordless"].tolist() == [0]
    assert whole["wordless"].tolist() == [], "its one region has words"
    assert bare["wordless"].tolist() == [0]
    assert bare["text"].shape == (0, 128)
    # Three regions with words: each object's own and both, the overlap with both descriptions.
    assert sorted(set(first["text_region"].tolist())) == [1, 2, 3]
    both = (first["text_region"] == 3).sum()
    assert both == (first["text_region"] == 1).sum() + (first["text_region"] == 2).sum()
    assert first["text"].dtype == np.float16
    assert first["cells"].shape == (16, 16)


@pytest.mark.parametrize("fuser", ["ca", "casa"])
def test_a_batch_is_what_the_sampler_makes_of_the_same_layout(
    base: Path, samples: list[dict[str, Any]], fuser: str
) -> None:
    """Tokens may stand in another order; the layers' answer is the same."""
    recipe = get("rich_context", "laptop", {"fuser": fuser})
    objective = recipe.objective(base)
    torch.manual_seed(0)
    unet = objective.build()
    for parameter in adapter_parameters(unet).values():
        torch.nn.init.normal_(parameter, std=0.05)
    batch = objective.collate(samples)
    pipeline = recipe.pipeline(base, unet)
    layouts = [PromptLayout([tuple(box) for box in one.boxes.tolist()], list(one.phrases)) for one in EXAMPLES[:2]]
    own = pipeline._region_layouts(layouts, (16, 16), 1.0, False)
    grounding = pipeline._tokens(own, (16, 16))
    with torch.no_grad():
        stored = unet.position_net(**batch["regions"])
        block = unet.mid_block.attentions[0].transformer_blocks[0]
        x = torch.randn(3, 16, block.fuser.null_text_feat.shape[0])
        ours, theirs = block.fuser(x, stored)[:2], block.fuser(x[:2], grounding)
    assert (ours - x[:2]).abs().max() > 1e-3
    # What is stored is fp16, and the map is cut from float32 boxes on both sides.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


def test_a_batch_holds_every_token_that_a_dense_one_would(base: Path, samples: list[dict[str, Any]]) -> None:
    text = SDXLText.load(base)

    def encode(texts: Any) -> EncodedTexts:
        ids, states = region_states(text.tokenizers, text.encoders, texts)
        return EncodedTexts(ids, states.numpy())

    tokenizer = text.tokenizers[0]
    boxes = EXAMPLES[0].boxes
    wanted = region_tokens(
        map_regions(boxes, 16, 16), boxes, PHRASES, encode,
        separator=tokenizer.convert_tokens_to_ids(SEPARATOR), end=tokenizer.eos_token_id,
    )  # fmt: skip
    regions = get("rich_context", "laptop").objective(base).collate(samples)["regions"]
    assert regions["text"].shape[1] % 8 == 0
    for region in range(4):
        rows = regions["region"][0] == region
        expected = torch.from_numpy(wanted.text[wanted.region == region])
        torch.testing.assert_close(regions["text"][0][rows].float(), expected, atol=1e-2, rtol=1e-2)
        assert torch.equal(regions["bias"][0][rows], torch.from_numpy(wanted.bias[wanted.region == region]))
    assert (regions["cells"][1] == 0).all()
    assert (regions["region"][2] == 0).sum() == tokenizer.model_max_length, "the background's states of no words"


class Recorder(torch.nn.Module):
    """Stands where the UNet stands and keeps what it was called with; predicts zeros."""

    def forward(self, noised: torch.Tensor, timesteps: torch.Tensor, prompt: torch.Tensor, **more: Any) -> Any:
        self.prompt, self.more = prompt, more

        class Output:
            sample = torch.zeros_like(noised)

        return Output


def asked(base: Path, samples: list[dict[str, Any]], rows: int, **given: Any) -> Recorder:
    recipe = get("rich_context", "laptop", given)
    objective = recipe.objective(base)
    model = Recorder()
    batch = objective.collate(samples[:1] * rows)
    objective.loss(model, batch, Draws(0, [(0, i) for i in range(rows)]), 0.0)
    return model


def test_layout_and_caption_are_dropped_independently_by_count(base: Path, samples: list[dict[str, Any]]) -> None:
    model = asked(base, samples, 2000, drop_boxes=0.2, drop_caption=0.3)
    layout = (model.more["cross_attention_kwargs"]["gligen"]["cells"] >= 0).flatten(1).any(1)
    caption = model.prompt.abs().sum((1, 2)) > 0
    assert torch.equal(caption, model.more["added_cond_kwargs"]["text_embeds"].abs().sum(1) > 0)
    for has_layout in (True, False):
        for has_caption in (True, False):
            share = (0.8 if has_layout else 0.2) * (0.7 if has_caption else 0.3)
            found = ((layout == has_layout) & (caption == has_caption)).float().mean().item()
            assert found == pytest.approx(share, abs=0.04)
    assert model.more["added_cond_kwargs"]["time_ids"][0].tolist() == [64, 64, 0, 0, 64, 64]


def test_parity_drops_the_whole_batchs_captions_and_no_pooled_text(base: Path, samples: list[dict[str, Any]]) -> None:
    for drop in (0.0, 1.0):
        model = asked(base, samples, 4, parity=True, drop_caption=drop)
        assert bool(model.prompt.abs().sum() > 0) is (drop == 0)
        assert (model.more["added_cond_kwargs"]["text_embeds"].abs().sum(1) > 0).all()
    half = asked(base, samples, 6, parity=True, drop_caption=0.5).prompt.abs().sum((1, 2)) > 0
    assert bool(half.all()) or not bool(half.any()), "one draw for all"


def test_parity_makes_other_features(base: Path, samples: list[dict[str, Any]]) -> None:
    upstreams = encoded(base, parity=True)
    assert (upstreams[1]["cells"] == 0).any(), "no box of upstream's reaches the last row"
    assert upstreams[1]["wordless"].tolist() == [0]
    own, parity = (get("rich_context", "laptop", {"parity": each}).encoding for each in (False, True))
    assert own != parity


def test_a_fresh_one_is_its_base_and_learns(base: Path, samples: list[dict[str, Any]]) -> None:
    objective = get("rich_context", "laptop", {"drop_boxes": 0.0, "drop_caption": 0.0}).objective(base)
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
    assert objective.flops_per_sample() == pytest.approx(
        get("rich_context", "laptop").footprint.training_flops, rel=0.2
    )


@pytest.fixture(scope="module")
def exported(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = get("rich_context", "laptop")
    objective = recipe.objective(base)
    torch.manual_seed(3)
    unet = objective.build()
    for parameter in adapter_parameters(unet).values():
        torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path_factory.mktemp("exported")
    counts = recipe.export(base, objective.trainable_state(unet), folder)
    assert counts["adapter"] == sum(p.numel() for p in adapter_parameters(unet).values())
    assert counts["total"] == sum(p.numel() for p in unet.parameters())
    return folder


def draw(pipeline: Any, **given: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    images: np.ndarray = pipeline(
        "a seven and a three", height=64, width=64, num_inference_steps=3, guidance_scale=3.0, output_type="np",
        generator=torch.Generator().manual_seed(5), **given,
    ).images[0]  # fmt: skip
    return images


def test_an_export_opens_here_with_its_layers_and_in_stock_diffusers_as_its_base(exported: Path, base: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    recipe = get("rich_context", "laptop")
    pipeline, by_command = recipe.pipeline(exported), open_pipeline(exported)
    assert type(by_command) is type(pipeline)
    layout = {"boxes": OVERLAPPING, "labels": list(PHRASES)}
    with_boxes = draw(pipeline, **layout)
    assert np.array_equal(with_boxes, draw(by_command, **layout))
    assert not np.array_equal(with_boxes, draw(pipeline))
    stock = draw(StableDiffusionXLPipeline.from_pretrained(exported, add_watermarker=False))
    assert np.allclose(stock, draw(pipeline), atol=1e-5), "without a layout it is its base"
    pixels = (np.asarray(OVERLAPPING) * 64).tolist()
    assert np.allclose(draw(pipeline, boxes=pixels, labels=list(PHRASES), box_unit="px"), with_boxes, atol=1e-5)
    larger = {"boxes": [[0.1, 0.1, 0.66, 0.66]], "labels": ["a seven"]}  # a cell more than upstream's rounding gives
    assert not np.array_equal(draw(pipeline, **larger, parity=True), draw(pipeline, **larger))
    assert np.array_equal(draw(pipeline, **layout, scheduled_sampling_beta=0.0), draw(pipeline))


def test_a_picture_does_not_depend_on_its_neighbours(exported: Path) -> None:
    pipeline = open_pipeline(exported)
    pipeline.set_progress_bar_config(disable=True)

    def drawn(prompts: list[str], boxes: list[Any], labels: list[Any], seeds: list[int]) -> np.ndarray:
        images: np.ndarray = pipeline(
            prompts, height=64, width=96, num_inference_steps=2, guidance_scale=3.0, output_type="np",
            generator=[torch.Generator().manual_seed(seed) for seed in seeds], boxes=boxes, labels=labels,
        ).images  # fmt: skip
        return images

    together = drawn(["a seven", "a two"], [OVERLAPPING, [[0, 0, 1, 1]]], [list(PHRASES), ["a two"]], [1, 2])
    alone = drawn(["a two"], [[[0, 0, 1, 1]]], [["a two"]], [2])
    assert np.allclose(together[1], alone[0], atol=1e-4)
    assert together.shape == (2, 64, 96, 3), "not a square"


def test_the_published_size_draws_described_objects_that_overlap() -> None:
    layouts = get("rich_context", "paper").layouts(64, 0)
    assert len(layouts) >= 3
    for layout in layouts:
        assert len(layout.boxes) == len(layout.phrases)
        assert all(box_fault(box) is None for box in layout.boxes)
        found = map_regions(layout.boxes, 64, 64)
        assert any(len(region.members) > 1 for region in found.regions)
        assert min(len(phrase.split()) for phrase in layout.phrases) >= 8


def test_bad_layouts_are_named(exported: Path, base: Path) -> None:
    pipeline = open_pipeline(exported)
    for given, said in (
        ({"boxes": OVERLAPPING, "labels": ["a seven"]}, "2 boxes and 1 phrases"),
        ({"boxes": [[10, 10, 40, 40]], "labels": ["a seven"]}, "not within 0 to 1"),
        ({"boxes": OVERLAPPING, "labels": list(PHRASES), "box_unit": "cm"}, "box_unit is 'cm'"),
        ({"boxes": OVERLAPPING * 20, "labels": list(PHRASES) * 20}, "40 boxes, more than the 30"),
    ):
        with pytest.raises(ConfigError, match=said):
            draw(pipeline, **given)
    with pytest.raises(ConfigError, match=r"decay is 0\.5"):
        pipeline.layout_arguments([], [], beta=1.0, decay=0.5)
    from atelier.sampling.regional_sdxl import StableDiffusionXLRegionalPipeline

    with pytest.raises(ConfigError, match=r"has no regional_adapter\.safetensors"):
        StableDiffusionXLRegionalPipeline.from_pretrained(base)


def test_layers_from_elsewhere(exported: Path, base: Path, tmp_path: Path) -> None:
    """A released folder keeps them in its UNet, under a name of early days; the published script saves them as .pth."""
    adapter = load_file(exported / "regional_adapter.safetensors")
    early = {name.replace("null_text_feature", "null_positive_feature"): value for name, value in adapter.items()}
    averages = {f"ema_unet.module.{name}": value for name, value in list(adapter.items())[:2]}
    torch.save(early | averages, tmp_path / "layers.pth")
    unet = tmp_path / "released" / "unet"
    unet.mkdir(parents=True)
    frozen = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(frozen | adapter, unet / "diffusion_pytorch_model.safetensors")
    config = json.loads((base / "unet" / "config.json").read_text())
    dotted = {"attention_type": "regional", "position_net_cls": "a.b.Net", "fuser_cls": "a.b.Fuser"}
    (unet / "config.json").write_text(json.dumps(config | dotted))
    out = OutputFolder(str(tmp_path / "base"), tmp_path / "work")
    shutil.copytree(base, out.path, dirs_exist_ok=True)
    frozen_base = InputFolder(out.finish("base", {}, {}))
    starting = get("rich_context", "laptop").starting
    for source in (tmp_path / "layers.pth", tmp_path / "released", exported):
        folder = tmp_path / f"taken-{source.stem}"
        folder.mkdir()
        lines = starting.take(source, folder, frozen_base)
        assert "regional layers (ca)" in lines[0]
        assert lines[1:] == (["left out 2 keys of an average (ema_unet.*)"] if source.suffix else [])
        read = starting.read(folder)
        assert read.keys() == adapter.keys()
        assert all(torch.equal(read[name].tensor(), adapter[name]) for name in adapter)
    # A released folder as the base: its own layers make room, and its configuration names no code.
    again = tmp_path / "again"
    again.mkdir()
    shutil.copytree(base, tmp_path / "with", ignore=shutil.ignore_patterns("unet"))
    shutil.copytree(unet, tmp_path / "with" / "unet")
    get("rich_context", "laptop").export(tmp_path / "with", adapter, again)
    written = json.loads((again / "unet" / "config.json").read_text())
    assert written == {name: value for name, value in config.items() if name != "attention_type"}
    assert not any(map(is_adapter_key, load_file(again / "unet" / "diffusion_pytorch_model.safetensors")))
    torch.save({"a.fuser.attn.to_q.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError):
        unpack(tmp_path / "other.pth", tmp_path, config)
    with pytest.raises(DataError, match="no such file"):
        unpack(tmp_path / "nowhere.pth", tmp_path, config)
