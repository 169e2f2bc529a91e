"""GLIGEN on COCO: encoding, batches, independent drops, captions drawn, both resets, sampling and export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from atelier.convert.pipeline_folder import ADAPTER, export
from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import adapter_parameters, attach, is_adapter_key
from atelier.recipes.gligen_coco import PROFILES, Recipe
from atelier.recipes.registry import get, profiles
from atelier.training.protocol import Draws
from tests.recipes.twin import write_twin

CAPTIONS = [("a seven and a one", "a one and a seven"), ("a two",), ("a zero", "a six", "a nine")]
PHRASES = [("a seven", "a one"), ("a two",), ()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("base"), twin="sd_twin")


def example(number: int, embeddings: np.ndarray | None = None) -> RawExample:
    captions, phrases = CAPTIONS[number], PHRASES[number]
    boxes = np.full((len(phrases), 4), [0.1, 0.2, 0.5, 0.6], np.float32)
    return RawExample(
        f"{number:012d}", b"", (64, 80), captions[0], boxes, np.ones(len(phrases), np.float32), phrases,
        captions=captions, boxes_px=boxes * 64.0, phrase_embeddings=embeddings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def samples(base: Path) -> list[dict[str, Any]]:
    rng, examples = np.random.default_rng(0), [example(number) for number in range(3)]
    encoded = (
        get("gligen_coco", "laptop").encoder(base).encode(rng.integers(0, 255, (3, 64, 64, 3), np.uint8), examples)
    )
    return [
        arrays | {"json": {"boxes": one.boxes.tolist()}, "epoch": 0, "index": i}
        for i, (arrays, one) in enumerate(zip(encoded, examples, strict=True))
    ]


class Recorder(torch.nn.Module):
    """Stands where the UNet stands and keeps what it was called with; predicts zeros."""

    def forward(self, noised: torch.Tensor, timesteps: torch.Tensor, prompt: torch.Tensor, **more: Any) -> Any:
        self.prompt, self.gligen = prompt, more["cross_attention_kwargs"]["gligen"]

        class Output:
            sample = torch.zeros_like(noised)

        return Output


def test_paper_is_the_published_recipe() -> None:
    """The facts' table 2.1; what differs from upstream is in ``parity`` alone."""
    paper, parity = PROFILES["paper"], PROFILES["parity"]
    assert (paper.resolution, paper.max_boxes, paper.min_area) == (512, 30, 0.01)
    assert (paper.drop_boxes, paper.drop_caption) == (0.1, 0.5)
    train = paper.train
    assert (train.batch_size, train.lr, train.weight_decay, train.clip_norm) == (64, 5e-5, 1e-2, 1.0)
    assert (train.steps, train.schedule, train.betas, train.eps) == (100_000, "constant", (0.9, 0.999), 1e-8)
    assert (train.ema_decay, train.warmup_steps, paper.reset, paper.gate_start) == (None, 500, "full", 0.0)
    assert (parity.train.warmup_steps, parity.reset, parity.train.precision) == (0, "upstream", "fp16")
    assert profiles("gligen_coco") == ("paper", "parity", "laptop")
    assert get("gligen_coco", "parity").config == parity


def test_every_caption_is_encoded(base: Path, samples: list[dict[str, Any]]) -> None:
    assert [sample["prompts"].shape for sample in samples] == [(2, 16, 128), (1, 16, 128), (3, 16, 128)]
    assert [sample["phrases"].shape for sample in samples] == [(2, 128), (1, 128), (0, 128)]
    assert samples[0]["latent"].shape == (4, 16, 16)
    assert all(
        array.dtype == np.float16 for s in samples for name, array in s.items() if name in ("prompts", "phrases")
    )
    pooled = (
        get("gligen_coco", "laptop")
        .encoder(base)
        .text.encoder(torch.from_numpy(np.array(get("gligen_coco", "laptop").encoder(base).text._ids(["a two"]))))
        .pooler_output
    )
    np.testing.assert_allclose(samples[1]["phrases"], pooled.detach().numpy(), atol=2e-3)


def test_embeddings_of_the_source_are_used_and_must_fit(base: Path) -> None:
    encoder, pixels = get("gligen_coco", "laptop").encoder(base), np.zeros((1, 64, 64, 3), np.uint8)
    given = np.full((1, 128), 0.5, np.float16)
    (made,) = encoder.encode(pixels, [example(1, given)])
    assert (made["phrases"] == given).all()
    with pytest.raises(DataError, match="this base's are 128 wide"):
        encoder.encode(pixels, [example(1, given[:, :64])])


def test_collate_pads_and_changes_no_sample(base: Path, samples: list[dict[str, Any]]) -> None:
    objective = get("gligen_coco", "laptop").objective(base)
    before = [[list(box) for box in sample["json"]["boxes"]] for sample in samples]
    for _ in range(3):
        batch = objective.collate(samples)
    assert [sample["json"]["boxes"] for sample in samples] == before
    assert batch["masks"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert batch["prompts"].shape == (3, 3, 16, 128)
    assert batch["captions"].tolist() == [2, 1, 3]


@pytest.mark.parametrize("profile", ["paper", "laptop"])
def test_boxes_and_caption_drop_independently_by_count(base: Path, samples: list[dict[str, Any]], profile: str) -> None:
    config = get("gligen_coco", profile).config
    objective = Recipe(profile, config).objective(base)
    rows = 8000
    batch = {name: value.expand(rows, *value.shape[1:]) for name, value in objective.collate(samples[:1]).items()}
    model = Recorder()
    objective.loss(model, batch, Draws(0, [(0, i) for i in range(rows)]), 0.0)
    boxes = model.gligen["masks"].sum(1) > 0
    caption = ~torch.isclose(model.prompt, objective._empty).flatten(1).all(1)
    p, q = config.drop_boxes, config.drop_caption
    if profile == "paper":
        assert [(1 - p) * (1 - q), (1 - p) * q, p * (1 - q), p * q] == pytest.approx([0.45, 0.45, 0.05, 0.05])
    expected = {(b, c): (1 - p if b else p) * (1 - q if c else q) for b in (True, False) for c in (True, False)}
    for (has_boxes, has_caption), share in expected.items():
        found = ((boxes == has_boxes) & (caption == has_caption)).float().mean().item()
        assert found == pytest.approx(share, abs=0.02), (has_boxes, has_caption)


def test_one_of_the_captions_is_drawn_for_each_sample(base: Path, samples: list[dict[str, Any]]) -> None:
    """Each as often, from ``draws`` alone: the global generator is not asked and does not matter."""
    objective = get("gligen_coco", "laptop", {"drop_caption": 0.0}).objective(base)
    rows, picked = 6000, []
    batch = {name: value.expand(rows, *value.shape[1:]) for name, value in objective.collate(samples[2:]).items()}
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, state = Recorder(), torch.get_rng_state()
        objective.loss(model, batch, Draws(0, [(0, i) for i in range(rows)]), 0.0)
        assert torch.equal(state, torch.get_rng_state())
        distance = (model.prompt[:, None] - batch["prompts"].float()).abs().flatten(2).sum(2)
        picked.append(distance.argmin(1))
        assert distance.min(1).values.max() < 1e-3
    assert torch.equal(*picked)
    assert (torch.bincount(picked[0], minlength=3) / rows).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_full_reset_starts_as_the_base_model(base: Path, samples: list[dict[str, Any]]) -> None:
    model = get("gligen_coco", "paper").objective(base).build()
    plain = UNet2DConditionModel.from_pretrained(base / "unet")
    batch = get("gligen_coco", "laptop").objective(base).collate(samples)
    x, t, prompt = batch["latents"], torch.tensor([10, 500, 990]), batch["prompts"][:, 0].float()
    gligen = {"boxes": batch["boxes"], "masks": batch["masks"], "positive_embeddings": batch["phrases"]}
    with torch.no_grad():
        grounded = model(x, t, prompt, cross_attention_kwargs={"gligen": gligen}).sample
        assert torch.equal(grounded, plain(x, t, prompt).sample)


@pytest.fixture(scope="module")
def gated(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that carries a trained adapter, as masterful/gligen-1-4-generation-text-box does."""
    torch.manual_seed(7)
    adapter = {
        name: torch.randn_like(p) * 0.3
        for name, p in adapter_parameters(attach(UNet2DConditionModel.from_pretrained(base / "unet"))).items()
    }
    folder = tmp_path_factory.mktemp("gated")
    export(base, adapter, folder)
    return folder


def test_upstreams_reset_keeps_gates_and_null_features(base: Path, gated: Path) -> None:
    trained = load_file(gated / ADAPTER)
    torch.manual_seed(0)
    model = get("gligen_coco", "laptop", {"reset": "upstream"}).objective(gated).build()
    kept, drawn = set(), set()
    for name, parameter in adapter_parameters(model).items():
        (kept if torch.equal(parameter, trained[name]) else drawn).add(name.rsplit(".", 1)[-1])
        assert parameter.requires_grad
    assert kept == {"alpha_attn", "alpha_dense", "null_positive_feature", "null_position_feature"}
    assert drawn == {"weight", "bias"}
    full = get("gligen_coco", "paper").objective(gated).build()
    assert all(value == 0 for value in get("gligen_coco", "paper").objective(gated).gauges(full).values())
    assert full.position_net.null_positive_feature.abs().sum() == 0
    with pytest.raises(ConfigError, match="base without GLIGEN layers"):
        get("gligen_coco", "laptop", {"reset": "upstream"}).objective(base).build()


def test_the_adapter_alone_is_trained_and_the_loss_falls(base: Path, samples: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    objective = get("gligen_coco", "laptop").objective(base)
    model = objective.build()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(adapter_parameters(model))
    assert {group["name"]: group.get("lr") for group in objective.parameter_groups(model)} == {
        "adapter": None,
        "gates": 1e-2,
    }
    batch, keys = objective.collate(samples), [(0, i) for i in range(3)]
    together = objective.loss(model, batch, Draws(0, keys), 0.5)["loss"]
    apart = [
        objective.loss(model, objective.collate([sample]), Draws(0, [key]), 0.5)["loss"]
        for sample, key in zip(samples, keys, strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(apart).mean(), rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(12):
        optimizer.zero_grad()
        loss = objective.loss(model, batch, Draws(0, keys), 0.5)["loss"]
        loss.backward()
        optimizer.step()
    assert all((p.grad is not None) == is_adapter_key(name) for name, p in model.named_parameters())
    assert loss < 0.95 * together


def test_half_precision_computes_the_same(base: Path, samples: list[dict[str, Any]]) -> None:
    objective = get("gligen_coco", "laptop", {"preview_steps": 2}).objective(base)
    torch.manual_seed(0)
    model, keys = objective.build(), [(0, i) for i in range(3)]
    whole = objective.loss(model, objective.collate(samples), Draws(0, keys), 0.5)["loss"]
    half = objective.loss(model.bfloat16(), objective.collate(samples), Draws(0, keys), 0.5)["loss"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0)
    assert len(objective.preview(model, 0)) == 8


def test_previews_and_their_metric_leave_the_model_as_it_was(base: Path) -> None:
    objective = get("gligen_coco", "laptop", {"preview_steps": 2}).objective(base)
    model = objective.build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = objective.preview(model, 0)
    metrics = objective.validate(model, 0, images)
    assert {"ink_in_boxes", "ink_in_boxes_ungrounded"} <= metrics.keys()
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_flops_against_a_count_of_a_real_step(base: Path, samples: list[dict[str, Any]]) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    objective = get("gligen_coco", "laptop").objective(base)
    model = objective.build()
    # torch's counter does not know the CPU's flash attention.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective.loss(model, objective.collate(samples[:1]), Draws(0, [(0, 0)]), 0.0)["loss"].backward()
    assert objective.flops_per_sample() == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_export_opens_and_gives_the_same_picture(base: Path, gated: Path) -> None:
    stock = DiffusionPipeline.from_pretrained(gated)
    assert type(stock) is StableDiffusionPipeline
    unet = UNet2DConditionModel.from_pretrained(gated / "unet")
    assert unet.config["attention_type"] == "gated"
    assert sorted(path.name for path in (gated / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    recipe = get("gligen_coco", "laptop")
    layouts = recipe.layouts(2, seed=3)
    whole = recipe.sample(recipe.pipeline(gated), layouts, 2, 4.0)
    swapped = recipe.sample(recipe.pipeline(base, unet), layouts, 2, 4.0)
    control = recipe.sample(recipe.pipeline(gated), layouts, 2, 4.0, grounded=False)
    for one, other, none in zip(whole, swapped, control, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
        assert not np.array_equal(np.asarray(one), np.asarray(none))
