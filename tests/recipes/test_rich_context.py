"""The recipe on both bases: what is stored of regions, batches, drops, the loss, export and other people's layers."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from atelier.cli import main
from atelier.convert.regional_folder import to_folder, unpack
from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import adapter_parameters, is_adapter_key
from atelier.models.regional.reading import read_regions
from atelier.models.regional.regions import map_regions
from atelier.models.regional.rules import ADAPTER, RegionRules, read_rules
from atelier.models.regional_unet import attach_regional
from atelier.recipes.registry import get, predecessor_of, profiles
from atelier.recipes.rich_context_objective import TEXTS
from atelier.recipes.sd_text import SDText
from atelier.recipes.sdxl_text import SDXLText
from atelier.sampling.folder import open_pipeline
from atelier.sampling.layout_input import PromptLayout, box_fault
from atelier.sampling.region_text import region_reader, region_states
from atelier.sampling.regional_pipeline import _shares
from atelier.storage.folder import OutputFolder
from atelier.storage.inputs import InputFolder
from atelier.training.engine import to_device
from atelier.training.protocol import Draws
from tests.recipes.twin import write_twin

OVERLAPPING = [[0.1, 0.1, 0.6, 0.6], [0.4, 0.4, 0.9, 0.9]]
PHRASES = ("a big seven", "a tiny three")


@pytest.fixture(scope="module", params=["rich_context", "rich_context:sd15"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("base"), twin=get(name, "laptop").twin)


def text_of(name: str, base: Path) -> SDXLText | SDText:
    return TEXTS[get(name, "laptop").config.family].load(base)


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


def encoded(name: str, base: Path, **given: Any) -> list[dict[str, Any]]:
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    made = get(name, "laptop", given).encoder(base).encode(images, EXAMPLES)
    return [
        arrays | {"json": {"boxes": one.boxes.tolist()}, "epoch": 0, "index": i}
        for i, (arrays, one) in enumerate(zip(made, EXAMPLES, strict=True))
    ]


@pytest.fixture(scope="module")
def samples(name: str, base: Path) -> list[dict[str, Any]]:
    return encoded(name, base)


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
    name: str, base: Path, samples: list[dict[str, Any]], fuser: str
) -> None:
    """Tokens may stand in another order; the layers' answer is the same."""
    recipe = get(name, "laptop", {"fuser": fuser})
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


def test_a_batch_holds_every_token_that_a_dense_one_would(name: str, base: Path, samples: list[dict[str, Any]]) -> None:
    text = text_of(name, base)
    tokenizer = text.tokenizers[0]
    given = [(EXAMPLES[0].boxes, PHRASES)]
    ((_, wanted),) = read_regions(given, 16, 16, region_reader(text.tokenizers, text.encoders))
    regions = get(name, "laptop").objective(base).collate(samples)["regions"]
    assert regions["text"].shape[1] % 8 == 0
    for region in range(4):
        rows = regions["region"][0] == region
        expected = torch.from_numpy(wanted.text[wanted.region == region])
        torch.testing.assert_close(regions["text"][0][rows].float(), expected, atol=1e-2, rtol=1e-2)
        assert torch.equal(regions["bias"][0][rows], torch.from_numpy(wanted.bias[wanted.region == region]))
    assert (regions["cells"][1] == 0).all()
    assert (regions["region"][2] == 0).sum() == tokenizer.model_max_length, "the background's states of no words"


@pytest.mark.parametrize(
    ("phrases", "parity", "wordless"),
    [(("...", "; ;"), False, [0, 1, 2, 3]), ((";", "; ;"), True, [0, 1, 2])],  # upstream's overlap is a separator
)
def test_descriptions_of_signs_alone_are_stored_as_no_words(
    name: str, base: Path, phrases: tuple[str, str], parity: bool, wordless: list[int]
) -> None:
    """What is made again of the sample is what the sampler reads of the same layout."""
    recipe, silent = get(name, "laptop", {"parity": parity}), example(7, OVERLAPPING, phrases)
    made = recipe.encoder(base).encode(np.zeros((1, 64, 64, 3), np.uint8), [silent])[0]
    assert made["wordless"].tolist() == wordless
    assert made["wordless"].dtype == np.int16
    regions = recipe.objective(base).collate([made | {"json": {"boxes": OVERLAPPING}}])["regions"]
    text = text_of(name, base)
    reader = region_reader(text.tokenizers, text.encoders)
    ((_, wanted),) = read_regions([(silent.boxes, phrases)], 16, 16, reader, legacy=parity)
    for number in range(4):
        given, read = regions["region"][0] == number, wanted.region == number
        expected = torch.from_numpy(wanted.text[read])
        torch.testing.assert_close(regions["text"][0][given].float(), expected, atol=1e-2, rtol=1e-2)


def test_a_description_beside_signs_alone(name: str, base: Path) -> None:
    mixed = example(8, OVERLAPPING, ("...", "a cat"))
    made = get(name, "laptop").encoder(base).encode(np.zeros((1, 64, 64, 3), np.uint8), [mixed])[0]
    assert made["wordless"].tolist() == [0, 2], "the first box alone"


def test_objects_that_the_text_encoder_would_cut_off_are_kept(name: str, base: Path) -> None:
    """Four boxes around one spot, 3 + 3 + 3 + 3 words and three separators, of which the twin's encoder reads 14."""
    boxes = [[0.0, 0.0, 1.0 - 0.2 * n, 1.0 - 0.2 * n] for n in range(4)]
    phrases = ("a big seven", "a tiny three", "a large one", "a small two")
    images = np.zeros((1, 64, 64, 3), np.uint8)

    def owned(**given: Any) -> list[int]:
        """How many tokens each object has in the smallest box."""
        encoder = get(name, "laptop", given).encoder(base)
        (made,) = encoder.encode(images, [example(9, boxes, phrases)])
        rows = made["text_region"] == made["cells"][0, 0]
        return [int(np.isclose(made["text_boxes"][rows], box, atol=1e-6).all(1).sum()) for box in boxes]

    tokenizer = text_of(name, base).tokenizers[0]
    assert tokenizer.model_max_length == 16
    assert len(tokenizer("; ".join(phrases)).input_ids) > 16
    lengths = [len(tokenizer(phrase).input_ids) - 2 for phrase in phrases]
    assert owned() == lengths
    cut = owned(parity=True)
    assert cut[:2] == lengths[:2]
    assert cut[3] < lengths[3]


def test_of_too_many_tokens_the_smallest_regions_are_left_out_and_counted(
    name: str, base: Path, samples: list[dict[str, Any]]
) -> None:
    """The overlap is the smallest region, and has as many tokens as the two boxes' own together."""
    whole, images = samples[0], np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    background = TEXTS[get(name, "laptop").config.family].load(base).tokenizers[0].model_max_length
    tokens = len(whole["text_region"]) + background
    made = {}
    for most in (tokens, tokens - 1, background):
        encoder = get(name, "laptop", {"max_region_tokens": most}).encoder(base)
        made[most] = encoder.encode_squares({64: images}, EXAMPLES)
    kept, fewer, none = (made[most][0] for most in made)
    assert all(np.array_equal(kept.arrays[field], whole[field]) for field in kept.arrays)
    assert kept.counts == {
        "region_tokens": tokens, "regions_left_out": 0, "pictures_limited": 0, "descriptions_cut": 0,
    }  # fmt: skip
    rows = whole["text_region"] != 3
    assert np.array_equal(fewer.arrays["text"], whole["text"][rows])
    assert np.array_equal(fewer.arrays["text_region"], whole["text_region"][rows])
    assert np.array_equal(fewer.arrays["cells"], np.where(whole["cells"] == 3, -1, whole["cells"]))
    assert fewer.arrays["wordless"].tolist() == [0]
    assert fewer.counts["regions_left_out"] == fewer.counts["pictures_limited"] == 1
    assert fewer.counts["region_tokens"] == background + rows.sum()
    assert none.arrays["text"].shape == (0, 128)
    assert none.arrays["wordless"].tolist() == [0], "never the background"
    assert none.counts["regions_left_out"] == 3
    encodings = [get(name, "laptop", {"max_region_tokens": most}).encoding for most in (5, 6)]
    assert encodings[0] != encodings[1], "other shards"


def test_cells_of_regions_that_stay_see_what_they_saw(name: str, base: Path, samples: list[dict[str, Any]]) -> None:
    """Regions keep their numbers, by which their unions are found again."""
    fewer = [
        given | arrays
        for given, arrays in zip(
            samples, encoded(name, base, max_region_tokens=len(samples[0]["text_region"]) + 15), strict=True
        )
    ]
    gone = torch.from_numpy(samples[0]["cells"].astype(np.int64)).flatten() == 3
    assert (fewer[0]["cells"].flatten()[gone.numpy()] == -1).all()
    objective = get(name, "laptop").objective(base)
    torch.manual_seed(0)
    unet = objective.build()
    for parameter in adapter_parameters(unet).values():
        torch.nn.init.normal_(parameter, std=0.05)
    fuser = unet.down_blocks[-1].attentions[0].transformer_blocks[0].fuser
    x = torch.randn(1, 256, fuser.null_text_feat.shape[0])
    with torch.no_grad():
        own, other = (
            fuser(x, unet.position_net(**objective.collate(given[:1])["regions"]))[0] for given in (samples, fewer)
        )
    assert (own - other)[gone].abs().max() > 1e-3
    torch.testing.assert_close(own[~gone], other[~gone], atol=1e-5, rtol=1e-5)
    objective = get(name, "laptop", {"fuser": "casa"}).objective(base)
    unions = [objective.collate(given[:1])["regions"]["unions"] for given in (samples, fewer)]
    assert torch.equal(*unions)
    assert unions[0].flatten(2).sum(2)[0, 1:].tolist() == [64, 64, (samples[0]["cells"] > 0).sum()]


def test_descriptions_longer_than_the_text_encoder_reads_are_counted(name: str, base: Path) -> None:
    encoder = get(name, "laptop").encoder(base)
    long = " ".join(["seven"] * 15)
    given = [example(0, OVERLAPPING, (long, "a two")), example(1, OVERLAPPING, PHRASES)]
    made = encoder.encode_squares({64: np.zeros((2, 64, 64, 3), np.uint8)}, given)
    assert [each.counts["descriptions_cut"] for each in made] == [1, 0]


def test_several_resolutions_are_refused(name: str, base: Path) -> None:
    encoder = get(name, "laptop").encoder(base)
    squares = {side: np.zeros((1, side, side, 3), np.uint8) for side in (64, 32)}
    with pytest.raises(ConfigError, match="resolutions 32, 64: regions are cut for one latent"):
        encoder.encode_squares(squares, EXAMPLES[:1])


def test_whether_a_text_fits_is_the_tokenizers_word(name: str, base: Path) -> None:
    text = text_of(name, base)
    reader = region_reader(text.tokenizers, text.encoders)
    for count in range(1, 20):
        words = " ".join(["seven"] * count)
        assert reader.fits(words) == (len(text.tokenizers[0](words).input_ids) <= 16) == (count <= 14)
    with pytest.raises(ConfigError, match="no text encoder for descriptions"):
        region_reader((text.tokenizers[0], None), text.encoders)


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


@pytest.fixture(scope="module")
def exported(name: str, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = get(name, "laptop")
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


def test_an_export_opens_here_with_its_layers_and_in_stock_diffusers_as_its_base(
    name: str, exported: Path, base: Path
) -> None:
    recipe = get(name, "laptop")
    pipeline, by_command = recipe.pipeline(exported), open_pipeline(exported)
    assert type(by_command) is type(pipeline)
    layout = {"boxes": OVERLAPPING, "labels": list(PHRASES)}
    with_boxes = draw(pipeline, **layout)
    assert np.array_equal(with_boxes, draw(by_command, **layout))
    assert not np.array_equal(with_boxes, draw(pipeline))
    family = StableDiffusionXLPipeline if name == "rich_context" else StableDiffusionPipeline
    stock = draw(family.from_pretrained(exported))
    assert np.allclose(stock, draw(pipeline), atol=1e-5), "without a layout it is its base"
    pixels = (np.asarray(OVERLAPPING) * 64).tolist()
    assert np.allclose(draw(pipeline, boxes=pixels, labels=list(PHRASES), box_unit="px"), with_boxes, atol=1e-5)
    larger = {"boxes": [[0.1, 0.1, 0.66, 0.66]], "labels": ["a seven"]}  # a cell more than upstream's rounding gives
    assert not np.array_equal(draw(pipeline, **larger, parity=True), draw(pipeline, **larger))
    assert np.array_equal(draw(pipeline, **layout, scheduled_sampling_beta=0.0), draw(pipeline))


def test_a_folder_remembers_by_which_rules_it_was_trained(
    name: str, exported: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = load_file(exported / "regional_adapter.safetensors")
    upstreams = tmp_path / "parity"
    upstreams.mkdir()
    get(name, "laptop", {"parity": True, "iou_weight": 2.0}).export(base, adapter, upstreams)
    layout = {"boxes": [[0.1, 0.1, 0.66, 0.66]], "labels": ["a seven"]}
    by_upstream = draw(open_pipeline(upstreams), **layout)
    ours = open_pipeline(exported)
    assert np.array_equal(by_upstream, draw(ours, **layout, parity=True, attention_weight_scale=2.0))
    assert not np.array_equal(by_upstream, draw(ours, **layout))
    assert np.array_equal(draw(ours, **layout), draw(open_pipeline(upstreams), **layout, parity=False))

    # Layers that state no rules, as released ones, and back: by upstream's unless one says otherwise.
    layers = str(tmp_path / "layers.pth")
    assert main(["convert-regional", str(exported), layers]) == 0
    assert "regions by our rules, which a .pth does not state" in capsys.readouterr().out
    assert main(["convert-regional", layers, str(tmp_path / "a"), "--base", str(base)]) == 0
    assert "regions by upstream's rules" in capsys.readouterr().out
    assert main(["convert-regional", layers, str(tmp_path / "b"), "--base", str(base), "--own-rules"]) == 0
    assert np.array_equal(draw(open_pipeline(tmp_path / "a"), **layout), draw(ours, **layout, parity=True))
    assert np.array_equal(draw(open_pipeline(tmp_path / "b"), **layout), draw(ours, **layout))
    assert main(["convert-regional", layers, str(tmp_path / "c")]) == 2
    assert main(["convert-regional", layers, str(tmp_path / "b"), "--base", str(base)]) == 2
    torch.save({**adapter, "down_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(1)}, layers)
    assert main(["convert-regional", layers, str(tmp_path / "c"), "--base", str(base)]) == 2
    assert "holds LoRA weights" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_rules_that_a_source_states_go_along(
    name: str, exported: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder, and from a file of layers; a flag changes which rules, never the weight."""
    adapter = load_file(exported / ADAPTER)
    for rules in (RegionRules(False, 0.25), RegionRules(True, 2.0)):
        folder, layers = tmp_path / f"{rules.parity}", tmp_path / f"{rules.parity}.safetensors"
        folder.mkdir()
        get(name, "laptop", {"parity": rules.parity, "iou_weight": rules.iou_weight}).export(base, adapter, folder)
        assert main(["convert-regional", str(folder), str(layers)]) == 0
        assert read_rules(layers) == rules
        for number, source in enumerate((folder, layers)):
            for flag, parity in (("", rules.parity), ("--own-rules", False), ("--upstream-rules", True)):
                target = tmp_path / f"{rules.parity}{number}{flag}"
                given = ["convert-regional", str(source), str(target), "--base", str(base), *([flag] if flag else [])]
                assert main(given) == 0
                assert open_pipeline(target).rules == RegionRules(parity, rules.iou_weight)
        other = tmp_path / f"other-{rules.parity}.safetensors"
        flag = "--own-rules" if rules.parity else "--upstream-rules"
        assert main(["convert-regional", str(layers), str(other), flag]) == 0
        assert read_rules(other) == RegionRules(not rules.parity, rules.iou_weight)
    assert "regions by our rules, iou_weight 0.25" in capsys.readouterr().out
    taken = tmp_path / "taken"
    taken.mkdir()
    unpack(folder, taken, json.loads((base / "unet" / "config.json").read_text()))
    assert read_rules(taken / ADAPTER) == RegionRules(True, 2.0)
    save_file(adapter, tmp_path / "silent.safetensors")
    assert read_rules(tmp_path / "silent.safetensors") is None
    assert main(["convert-regional", str(tmp_path / "silent.safetensors"), str(tmp_path / "made.safetensors")]) == 0
    assert read_rules(tmp_path / "made.safetensors") == RegionRules(True)


def test_layers_that_nothing_draws_with_are_refused_by_name(exported: Path, base: Path, tmp_path: Path) -> None:
    unet = attach_regional(UNet2DConditionModel.from_pretrained(base / "unet"), "instdiff")
    layers = tmp_path / "layers.safetensors"
    save_file({name: parameter.detach() for name, parameter in adapter_parameters(unet).items()}, layers)
    with pytest.raises(ConfigError, match="InstanceDiffusion's self-attention"):
        to_folder(layers, tmp_path / "made", base)
    assert not (tmp_path / "made").exists()
    folder = tmp_path / "folder"
    shutil.copytree(exported, folder)
    shutil.copy(layers, folder / ADAPTER)
    with pytest.raises(ConfigError, match="InstanceDiffusion's self-attention"):
        open_pipeline(folder)
    pipeline = open_pipeline(exported)
    pipeline.register_modules(unet=unet)
    with pytest.raises(ConfigError, match="InstanceDiffusion's self-attention"):
        draw(pipeline, boxes=OVERLAPPING, labels=list(PHRASES))


def test_an_empty_prompt_is_what_a_dropped_caption_was(name: str, exported: Path) -> None:
    pipeline = open_pipeline(exported)
    pipeline.set_progress_bar_config(disable=True)
    layout: dict[str, Any] = {"boxes": OVERLAPPING, "labels": list(PHRASES)}
    size: dict[str, Any] = {
        "height": 64,
        "width": 64,
        "num_inference_steps": 2,
        "guidance_scale": 3.0,
        "output_type": "np",
    }

    def drawn(prompt: Any, **given: Any) -> np.ndarray:
        generator = [torch.Generator().manual_seed(5) for _ in range(2 if isinstance(prompt, list) else 1)]
        images: np.ndarray = pipeline(prompt, **size, **given, generator=generator).images
        return images

    empty = drawn("", **layout)
    assert np.allclose(drawn(["", "a seven"], **layout)[0], empty[0], atol=1e-4)
    if name != "rich_context":
        assert np.array_equal(empty, drawn("", **layout, parity=True)), "SD's own are the states of nothing"
        return
    width, pooled = pipeline.unet.config.cross_attention_dim, pipeline.text_encoder_2.config.projection_dim
    zeros = torch.zeros(1, pipeline.tokenizer.model_max_length, width)
    nothing = {"prompt_embeds": zeros, "pooled_prompt_embeds": torch.zeros(1, pooled)}
    negative = {"negative_prompt_embeds": zeros, "negative_pooled_prompt_embeds": torch.zeros(1, pooled)}
    assert np.allclose(empty, drawn(None, **nothing, **negative, **layout), atol=1e-5)
    assert not np.allclose(empty, drawn("", **layout, parity=True), atol=1e-3)
    stock = StableDiffusionXLPipeline.from_pretrained(exported)
    stock.set_progress_bar_config(disable=True)
    plain = stock("", **size, generator=[torch.Generator().manual_seed(5)]).images
    assert np.allclose(drawn(""), plain, atol=1e-5), "without a layout it is its base"
    # What the second encoder alone is told is told: the prompt's states as the stock pipeline has them.
    states, _, summary, _ = stock.encode_prompt("", "a nine", do_classifier_free_guidance=False)
    half = drawn(None, prompt_embeds=states, pooled_prompt_embeds=summary, **negative, **layout)
    assert np.allclose(drawn("", prompt_2="a nine", **layout), half, atol=1e-5)
    assert not np.allclose(half, empty, atol=1e-3)
    assert np.allclose(drawn(["", "a seven"], prompt_2=["a nine", ""], **layout)[0], half[0], atol=1e-4)
    assert np.allclose(drawn("", prompt_2=[" "], **layout), empty, atol=1e-5)


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
    # One without boxes is the base model's alone, one with them has its own, whichever comes first.
    boxed = drawn(["a seven"], [OVERLAPPING], [list(PHRASES)], [1])
    for words in ("a two", ""):
        plain = drawn([words], [None], [None], [2])
        mixed = drawn(["a seven", words], [OVERLAPPING, None], [list(PHRASES), None], [1, 2])
        assert np.allclose(mixed, np.concatenate((boxed, plain)), atol=1e-4)
        swapped = drawn([words, "a seven"], [[], OVERLAPPING], [[], list(PHRASES)], [2, 1])
        assert np.allclose(swapped, np.concatenate((plain, boxed)), atol=1e-4)
    copies = pipeline(
        ["a seven", "a two"], height=64, width=96, num_inference_steps=2, guidance_scale=1.0, output_type="np",
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 1, 2, 2)], num_images_per_prompt=2,
        boxes=[OVERLAPPING, None], labels=[list(PHRASES), None],
    ).images  # fmt: skip
    bare = pipeline(
        "a two", height=64, width=96, num_inference_steps=2, guidance_scale=1.0, output_type="np",
        generator=torch.Generator().manual_seed(2),
    ).images  # fmt: skip
    assert all(np.allclose(copy, bare[0], atol=1e-4) for copy in copies[2:])
    assert not np.allclose(copies[0], copies[2], atol=1e-2)


def test_the_published_size_draws_described_objects_that_overlap() -> None:
    layouts = get("rich_context", "paper").layouts(64, 0)
    assert len(layouts) >= 3
    for layout in layouts:
        assert len(layout.boxes) == len(layout.phrases)
        assert all(box_fault(box) is None for box in layout.boxes)
        found = map_regions(layout.boxes, 64, 64)
        assert any(len(region.members) > 1 for region in found.regions)
        assert min(len(phrase.split()) for phrase in layout.phrases) >= 8


@pytest.mark.parametrize(
    "form",
    [
        list,
        torch.tensor,
        np.array,
        lambda boxes: [np.array(box, np.float32) for box in boxes],
        lambda boxes: [[np.float32(value) for value in box] for box in boxes],
        lambda boxes: [list(torch.tensor(box)) for box in boxes],
    ],
)
def test_boxes_in_pixels_in_every_form(form: Callable[[list[list[float]]], Any]) -> None:
    pixels = [[6.0, 16.0, 48.0, 32.0], [24.0, 8.0, 96.0, 64.0]]
    shares = [[0.0625, 0.25, 0.5, 0.5], [0.25, 0.125, 1.0, 1.0]]
    assert _shares(form(pixels), 64, 96) == shares
    assert _shares([form(pixels), None, [], form(pixels)[:1]], 64, 96) == [shares, None, [], shares[:1]]
    assert _shares(None, 64, 96) is None
    assert _shares(np.zeros((0, 4)), 64, 96) == []


def test_a_list_of_no_boxes_in_pixels(exported: Path) -> None:
    pipeline = open_pipeline(exported)
    layout = {"boxes": [[]], "labels": [[]], "box_unit": "px"}
    assert np.array_equal(draw(pipeline, **layout), draw(pipeline))


def test_many_texts_are_encoded_in_parts(name: str, base: Path) -> None:
    """What each encoder has before it at once, counted as it is called; every state is that of the text alone."""
    text = text_of(name, base)
    texts = [f"a {'big' if n % 2 else 'tiny'} seven " + "three " * (n // 2 % 7) + f"{n}" for n in range(150)]
    rows: list[int] = []
    made: list[int] = []

    def array(states: torch.Tensor) -> np.ndarray:
        made.append(len(states))
        return states.numpy().astype(np.float16)

    for encoder in text.encoders:
        encoder.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    ids, states = region_states(text.tokenizers, text.encoders, texts, array)
    assert max(rows) <= 64
    assert sum(rows) == 150 * len(text.encoders)
    assert made == [64, 64, 22], "moved part by part"
    assert (states.dtype, ids.dtype) == (np.float16, np.int64)
    for row in (0, 63, 64, 149):
        alone = region_states(text.tokenizers, text.encoders, [texts[row]])
        assert np.array_equal(ids[row], alone.ids[0])
        np.testing.assert_allclose(states[row], alone.states[0], atol=2e-3)
    assert not np.allclose(states[63], states[64], atol=1e-2)


def test_bad_layouts_are_named(exported: Path, base: Path) -> None:
    pipeline = open_pipeline(exported)
    for given, said in (
        ({"boxes": OVERLAPPING, "labels": ["a seven"]}, "2 boxes and 1 labels"),
        ({"boxes": OVERLAPPING, "labels": "a seven"}, "labels is the string 'a seven'"),
        ({"boxes": OVERLAPPING * 20, "labels": list(PHRASES) * 20}, "or raise max_objs"),
        ({"boxes": [[10, 10, 40]], "labels": ["a seven"], "box_unit": "px"}, "has 3 numbers, not 4"),
        ({"boxes": [[10, 10, "x", 40]], "labels": ["a seven"], "box_unit": "px"}, "is not four numbers"),
        ({"boxes": [[10, 10, 80, 40]], "labels": ["a seven"], "box_unit": "px"}, "not within 0 to 1"),
        ({"boxes": [[10, 10, 40, 40]], "labels": ["a seven"]}, "not within 0 to 1"),
        ({"boxes": OVERLAPPING, "labels": list(PHRASES), "box_unit": "cm"}, "box_unit is 'cm'"),
        ({"boxes": OVERLAPPING * 20, "labels": list(PHRASES) * 20}, "40 boxes, more than the 30"),
    ):
        with pytest.raises(ConfigError, match=said):
            draw(pipeline, **given)
    with pytest.raises(ConfigError, match=r"decay is 0\.5"):
        pipeline.layout_arguments([], [], beta=1.0, decay=0.5)
    with pytest.raises(ConfigError, match=r"has no regional_adapter\.safetensors"):
        type(pipeline).from_pretrained(base)


def test_layers_from_elsewhere(name: str, exported: Path, base: Path, tmp_path: Path) -> None:
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
    starting = get(name, "laptop").starting
    for source in (tmp_path / "layers.pth", tmp_path / "released", exported):
        folder = tmp_path / f"taken-{source.stem}"
        folder.mkdir()
        lines = starting.take(source, folder, frozen_base)
        assert "regional layers (ca)" in lines[0]
        assert lines[1:] == (["left out 2 keys of an average (ema_unet.*)"] if source.suffix else [])
        read = starting.read(folder)
        assert read.keys() == adapter.keys()
        assert all(torch.equal(read[name].tensor(), adapter[name]) for name in adapter)
    other = {name.replace("blocks.1.", "blocks.7."): value for name, value in adapter.items()}
    save_file(other, tmp_path / "another_base.safetensors")
    with pytest.raises(ConfigError, match="does not fit the UNet"):
        starting.take(tmp_path / "another_base.safetensors", tmp_path, frozen_base)
    # A released folder as the base: its own layers make room, and its configuration names no code.
    again = tmp_path / "again"
    again.mkdir()
    shutil.copytree(base, tmp_path / "with", ignore=shutil.ignore_patterns("unet"))
    shutil.copytree(unet, tmp_path / "with" / "unet")
    get(name, "laptop").export(tmp_path / "with", adapter, again)
    written = json.loads((again / "unet" / "config.json").read_text())
    assert written == {name: value for name, value in config.items() if name != "attention_type"}
    assert not any(map(is_adapter_key, load_file(again / "unet" / "diffusion_pytorch_model.safetensors")))
    torch.save({"a.fuser.attn.to_q.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError):
        unpack(tmp_path / "other.pth", tmp_path, config)
    with pytest.raises(DataError, match="no such file"):
        unpack(tmp_path / "nowhere.pth", tmp_path, config)


def test_guidance_and_size_where_nobody_says(name: str, exported: Path) -> None:
    pipeline = open_pipeline(exported)
    assert pipeline._default({}, "guidance_scale") == (5.0 if name == "rich_context" else 7.5)
    assert pipeline._size({}) == (64, 64)
