"""Exported models, other people's layers, and pictures drawn with them."""

import json
import shutil
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
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import adapter_parameters, is_adapter_key
from atelier.models.regional.regions import map_regions
from atelier.models.regional.rules import ADAPTER, RegionRules, read_rules
from atelier.models.regional_unet import attach_regional
from atelier.recipes.registry import get
from atelier.sampling.folder import open_pipeline
from atelier.sampling.layout_input import box_fault
from atelier.sampling.region_text import region_states
from atelier.sampling.regional_pipeline import _shares
from atelier.storage.folder import OutputFolder
from atelier.storage.inputs import InputFolder
from tests.recipes.rich_context.pictures import OVERLAPPING, PHRASES, draw, text_of


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
