"""The recipe: encoding, batches, joint drops, the loss and what it trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError
from atelier.models.grounded_unet import adapter_parameters, is_adapter_key
from atelier.recipes import igligen_xl
from atelier.recipes.previews import LayoutPreviews
from atelier.recipes.registry import get, names, profiles
from atelier.training.protocol import Draws
from tests.recipes.twin import write_twin


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def samples(base: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    captions = ["a seven and a one", "a two", "a zero"]
    phrases = [("a seven", "a one"), ("a two",), ()]
    examples = [
        RawExample(
            f"sa_{i}", b"", (64, 80), caption, np.full((len(own), 4), [0.1, 0.2, 0.5, 0.6], np.float32),
            np.ones(len(own), np.float32), own,
        )
        for i, (caption, own) in enumerate(zip(captions, phrases, strict=True))
    ]  # fmt: skip
    encoded = get("igligen_xl", "laptop").encoder(base).encode(rng.integers(0, 255, (3, 64, 64, 3), np.uint8), examples)
    return [
        arrays
        | {"json": {"boxes": example.boxes.tolist(), "time_ids": [2249, 3001, 0, 8, 64, 64]}, "epoch": 0, "index": i}
        for i, (arrays, example) in enumerate(zip(encoded, examples, strict=True))
    ]


def test_encoded_fields(samples: list[dict[str, Any]]) -> None:
    first = samples[0]
    shapes = {name: first[name].shape for name in ("latent", "prompt", "pooled", "phrases")}
    assert shapes == {"latent": (4, 16, 16), "prompt": (16, 128), "pooled": (64,), "phrases": (2, 128)}
    assert all(first[name].dtype == np.float16 for name in shapes)
    assert samples[2]["phrases"].shape == (0, 128)


def test_collate_pads_and_keeps_sizes_exact(base: Path, samples: list[dict[str, Any]]) -> None:
    batch = get("igligen_xl", "laptop").objective(base).collate(samples)
    assert batch["masks"].tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert batch["boxes"].shape == (3, 4, 4)
    assert batch["boxes"][0, 2:].abs().sum() == 0
    assert batch["time_ids"][0].tolist() == [2249, 3001, 0, 8, 64, 64]  # fp16 would give 2248 and 3000


def test_boxes_are_never_changed(base: Path, samples: list[dict[str, Any]]) -> None:
    before = [list(map(list, sample["json"]["boxes"])) for sample in samples]
    objective = get("igligen_xl", "laptop").objective(base)
    for _ in range(3):
        objective.collate(samples)
    assert [sample["json"]["boxes"] for sample in samples] == before


class Recorder(torch.nn.Module):
    """Stands where the UNet stands and keeps what it was called with; predicts zeros."""

    def forward(self, noised: torch.Tensor, timesteps: torch.Tensor, prompt: torch.Tensor, **more: Any) -> Any:
        self.prompt, self.more, self.timesteps = prompt, more, timesteps

        class Output:
            sample = torch.zeros_like(noised)

        return Output


@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_joint_drops_by_count(base: Path, samples: list[dict[str, Any]], profile: str) -> None:
    """Boxes go with probability p and take the caption along; else the caption alone goes with probability q."""
    recipe = get("igligen_xl", profile)
    objective = igligen_xl.Recipe(profile, recipe.config).objective(base)
    rows = 4000
    one = objective.collate(samples[:1])
    batch = {name: value.expand(rows, *value.shape[1:]) for name, value in one.items()}
    model = Recorder()
    objective.loss(model, batch, Draws(0, [(0, i) for i in range(rows)]), 0.0)
    boxes = model.more["cross_attention_kwargs"]["gligen"]["masks"].sum(1) > 0
    caption = model.prompt.abs().sum((1, 2)) > 0
    assert torch.equal(caption, model.more["added_cond_kwargs"]["text_embeds"].abs().sum(1) > 0)
    p, q = recipe.config.drop_boxes, recipe.config.drop_caption
    expected = {
        (True, True): (1 - p) * (1 - q),
        (True, False): (1 - p) * q,
        (False, True): 0.0,
        (False, False): p,
    }
    for (has_boxes, has_caption), share in expected.items():
        found = ((boxes == has_boxes) & (caption == has_caption)).float().mean().item()
        assert found == pytest.approx(share, abs=0.03 if share else 0.0), (has_boxes, has_caption)


def test_parity_encodes_a_dropped_caption(base: Path, samples: list[dict[str, Any]]) -> None:
    recipe = get("igligen_xl", "laptop", {"empty_prompt": "encoded", "drop_boxes": 1.0})
    objective = recipe.objective(base)
    objective.build()
    model = Recorder()
    objective.loss(model, objective.collate(samples), Draws(0, [(0, i) for i in range(3)]), 0.0)
    assert model.prompt.abs().sum() > 0
    assert torch.equal(model.prompt[0], model.prompt[1])


def test_build_trains_the_adapter_alone_and_draws_do_not_depend_on_company(
    base: Path, samples: list[dict[str, Any]]
) -> None:
    torch.manual_seed(0)
    objective = get("igligen_xl", "laptop").objective(base)
    model = objective.build()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(adapter_parameters(model))
    groups = objective.parameter_groups(model)
    assert sum(len(group["params"]) for group in groups) == len(adapter_parameters(model))
    assert {group["name"]: group.get("lr") for group in groups} == {"adapter": None, "gates": 1e-2}
    keys = [(0, i) for i in range(3)]
    together = objective.loss(model, objective.collate(samples), Draws(0, keys), 0.5)["loss"]
    apart = [
        objective.loss(model, objective.collate([sample]), Draws(0, [key]), 0.5)["loss"]
        for sample, key in zip(samples, keys, strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(apart).mean(), rtol=1e-4, atol=1e-5)
    together.backward()
    assert all((p.grad is not None) == is_adapter_key(name) for name, p in model.named_parameters())
    assert set(objective.trainable_state(model)) == set(adapter_parameters(model))


def test_half_precision_computes_the_same(base: Path, samples: list[dict[str, Any]]) -> None:
    """A model in bf16, as the engine holds it: the loss within rounding, and a preview comes out."""
    objective = get("igligen_xl", "laptop", {"preview_steps": 2}).objective(base)
    torch.manual_seed(0)
    model, keys = objective.build(), [(0, i) for i in range(3)]
    whole = objective.loss(model, objective.collate(samples), Draws(0, keys), 0.5)["loss"]
    half = objective.loss(model.bfloat16(), objective.collate(samples), Draws(0, keys), 0.5)["loss"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0)
    assert len(objective.preview(model, 0)) == 8


def test_paper_starts_as_the_base_model(base: Path) -> None:
    model = get("igligen_xl", "paper").objective(base).build()
    assert all(value == 0 for value in get("igligen_xl", "paper").objective(base).gauges(model).values())


def test_preview_leaves_the_model_as_it_was(base: Path) -> None:
    recipe = get("igligen_xl", "laptop", {"preview_steps": 2})
    objective = recipe.objective(base)
    model = objective.build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    images = objective.preview(model, 0)
    assert len(images) == 8
    assert images[0].size == (64, 64)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("rows", [1, 2])
def test_flops_against_a_count_of_a_real_step(base: Path, samples: list[dict[str, Any]], rows: int) -> None:
    """Forward and backward of the objective's own loss on real tensors."""
    from torch.utils.flop_counter import FlopCounterMode

    objective = get("igligen_xl", "laptop").objective(base)
    model = objective.build()
    draws = Draws(0, [(0, i) for i in range(rows)])
    # torch's counter does not know the CPU's flash attention.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective.loss(model, objective.collate(samples[:rows]), draws, 0.0)["loss"].backward()
    counted = counter.get_total_flops() / rows
    assert objective.flops_per_sample() == pytest.approx(counted, rel=0.05)


def test_flops_are_of_the_trained_resolution(base: Path) -> None:
    """SDXL's folder says 1024; a training at 512 does about a quarter of its work."""
    small = get("igligen_xl", "laptop").objective(base).flops_per_sample()
    large = get("igligen_xl", "laptop", {"resolution": 128}).objective(base).flops_per_sample()
    assert 3.5 < large / small < 5


def test_validation_measures_the_previews_and_leaves_the_model(base: Path) -> None:
    recipe = get("igligen_xl", "laptop", {"preview_steps": 2})
    objective = recipe.objective(base)
    model = objective.build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    enabled = [getattr(module, "enabled", None) for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    values = objective.validate(model, 0, objective.preview(model, 0))
    assert set(values) == {"ink_in_boxes", "ink_fill", "ink_in_boxes_ungrounded", "ink_fill_ungrounded"}
    assert all(0 <= value <= 1 for value in values.values())
    assert model.training
    assert enabled == [getattr(module, "enabled", None) for module in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_control_of_a_validation_does_not_depend_on_the_adapter(base: Path) -> None:
    recipe = get("igligen_xl", "laptop", {"preview_steps": 2})
    images = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        objective = recipe.objective(base)
        images.append(LayoutPreviews(recipe, base).draw(objective.build(), grounded=False))
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(*images, strict=True))


def test_nothing_is_validated_where_nothing_is_known_of_the_pictures(base: Path) -> None:
    recipe = get("igligen_xl", "laptop", {"preview_steps": 1})
    objective = igligen_xl.Recipe("paper", recipe.config).objective(base)
    assert objective.validate(objective.build(), 0, []) == {}


def test_profiles_and_overrides() -> None:
    assert names() == ("crossflow", "gligen_coco", "igligen_xl", "rich_context")
    assert profiles("igligen_xl") == ("paper", "laptop")
    paper = get("igligen_xl", "paper").config
    assert (paper.resolution, paper.max_boxes, paper.train.batch_size, paper.train.lr) == (512, 32, 64, 5e-5)
    assert (paper.train.steps, paper.drop_boxes, paper.drop_caption, paper.gate_start) == (500_000, 0.1, 0.5, 0.0)
    changed = get("igligen_xl", "laptop", {"guidance": 2.0, "train": {"steps": 7, "warmup_steps": 1}}).config
    assert (changed.guidance, changed.train.steps, changed.train.batch_size) == (2.0, 7, 48)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nothing", "laptop"), "no recipe 'nothing'"),
        (("igligen_xl", "desk"), "no profile 'desk'"),
        (("igligen_xl", "laptop", {"guidence": 1}), "guidence"),
        (("igligen_xl", "laptop", {"train": {"steps": -1}}), "train.steps"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        get(*arguments)


def test_held_out_layouts_are_their_own() -> None:
    recipe = get("igligen_xl", "laptop")
    first, again, other = recipe.layouts(5, 0), recipe.layouts(5, 0), recipe.layouts(5, 1)
    assert first == again
    assert first != other
    assert all(len(layout.boxes) == len(layout.phrases) == len(layout.labels) for layout in first)
