"""CrossFlow's recipe: the published numbers, each mended rule and its parity, and a training through the engine."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from atelier.convert.training_checkpoint import trainable_state
from atelier.data import digit_pairs, digits
from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError
from atelier.models.crossflow.configs import RELEASED
from atelier.models.crossflow.model import released_name
from atelier.models.crossflow.text_encoder import Posterior
from atelier.recipes import crossflow_losses as losses
from atelier.recipes.crossflow import PREDECESSORS, PROFILES, STAGES, Config, Recipe, ReleasedRule
from atelier.recipes.crossflow_networks import CLIP_TWIN, T5_TWIN
from atelier.recipes.crossflow_objective import LOG_VAR_RANGE, Rules, decay_groups, latents_of, terms
from atelier.recipes.registry import get, predecessor_of
from atelier.training.launcher import LocalLauncher
from atelier.training.protocol import Draws
from tests.models.crossflow.tiny import DIMR, DIT, base, made

HERE = Path(__file__).parent
MODELS = ("", "512_clip_dimr", "512_t5_dimr", "512_t5_dit", "256_t5_dimr")
OTHERS = ("256_clip_dit", "256_t5_dit", "512_clip_dit")
"""Combinations that nobody published."""


def _config(stage: str, profile: str) -> Config:
    return (STAGES[stage] if stage else PROFILES)[profile]


def recipe(**changes: Any) -> Recipe:
    found: Recipe = get("crossflow", "laptop", changes)
    return found


def examples(count: int, captions: list[str] | None = None) -> tuple[np.ndarray, list[RawExample]]:
    rng, glyphs = np.random.default_rng(0), digits.split().canvas
    drawn = [digit_pairs.draw(rng, 32, glyphs) for _ in range(count)]
    said = captions or [canvas.caption for canvas in drawn]
    return np.stack([canvas.pixels for canvas in drawn]), [
        RawExample(str(n), b"", (32, 32), caption, np.zeros((0, 4), np.float32), np.zeros(0), ())
        for n, caption in enumerate(said)
    ]


def samples(chosen: Recipe, count: int, captions: list[str] | None = None) -> list[dict[str, Any]]:
    return chosen.encoder(base()).encode(*examples(count, captions))


@pytest.mark.parametrize("stage", MODELS)
def test_paper_is_the_published_recipe(stage: str) -> None:
    config = _config(stage, "paper")
    name = stage.replace("_", "px_", 1) if stage else "256px_clip_dimr"
    rates = {"512px_t5_dit": 2e-5, "256px_t5_dimr": 5e-5}
    nulls = {"512px_clip_dimr": 0.15, "512px_t5_dimr": 0.15}
    assert config.model().flow == RELEASED[name].flow
    assert config.model().text == RELEASED[name].text | {"zero_padding": True}
    train = config.train
    assert (train.batch_size, train.steps, train.warmup_steps, train.seed) == (1024, 1_000_000, 5000, 1234)
    assert (train.lr, train.betas, train.weight_decay) == (rates.get(name, 1e-5), (0.9, 0.9), 0.03)
    assert (train.ema_decay, train.precision, train.eps) == (0.9999, "bf16", 1e-8)
    assert (config.null_share, config.kl_weight, config.guidance) == (nulls.get(name, 0.1), 1e-2, 7.0)
    assert config.latent_scale == 0.2301


@pytest.mark.parametrize("stage", MODELS)
def test_laptop_has_a_twin_of_each(stage: str) -> None:
    own = _config(stage, "laptop")
    config = own.model()
    assert config.backbone == ("dit" if stage.endswith("dit") else "dimr")
    assert config.tower is not None
    assert config.latent_shape == ((4, 16, 16) if "512" in stage else (4, 8, 8))
    assert config.text["width"] == (T5_TWIN if "t5" in stage else CLIP_TWIN)
    if config.backbone == "dimr":
        assert len(config.flow["stage_configs"]) == len(_config(stage, "paper").model().flow["stage_configs"])


def test_parity_is_the_published_model() -> None:
    """With upstream's rules and its tower of pixels, the networks are the released ones to the last key."""
    config = PROFILES["paper"].model_copy(update={"parity": True, "image_tower": "pixels"})
    assert config.model().tower == RELEASED["256px_clip_dimr"].tower
    assert not config.model().text["zero_padding"]


@pytest.mark.parametrize("stage", OTHERS)
def test_the_other_combinations_are_built_of_the_published_parts(stage: str) -> None:
    config, dit = _config(stage, "paper"), RELEASED["512px_t5_dit"]
    networks = config.model()
    assert networks.backbone == "dit"
    assert networks.flow == dit.flow | {"latent_size": config.resolution // 8}
    dimr = RELEASED[f"{config.resolution}px_{config.language_model}_dimr"]
    assert (networks.latent_shape, networks.text) == (dimr.latent_shape, dimr.text | {"zero_padding": True})
    assert config.train.lr == 2e-5
    assert _config(stage, "laptop").model().backbone == "dit"


def test_another_resolution_is_refused() -> None:
    with pytest.raises(ConfigError, match="no model of 384 px"):
        PROFILES["paper"].model_copy(update={"resolution": 384}).model()
    with pytest.raises(ConfigError, match="cannot draw 40 px"):
        PROFILES["laptop"].model_copy(update={"resolution": 40}).model()


def test_the_chain() -> None:
    """Upstream's README: 256 CLIP, from it 512 CLIP and 256 T5, from 512 CLIP both T5 models."""
    before = {stage: predecessor_of(f"crossflow:{stage}") for stage in STAGES}
    assert {stage: before[stage] for stage in MODELS[1:]} == {
        "512_clip_dimr": "crossflow",
        "512_t5_dimr": "crossflow:512_clip_dimr",
        "512_t5_dit": "crossflow:512_clip_dimr",
        "256_t5_dimr": "crossflow",
    }
    assert predecessor_of("crossflow") == ""
    assert STAGES.keys() == PREDECESSORS.keys()
    for stage in STAGES:  # every chain ends at the first
        seen, recipe = set[str](), f"crossflow:{stage}"
        while recipe := predecessor_of(recipe):
            assert recipe not in seen
            seen.add(recipe)
        assert "crossflow" in seen


def test_parity_is_every_released_rule() -> None:
    rules = get_args(ReleasedRule)
    assert len(rules) == 6
    for chosen in rules:
        single = recipe(released=[chosen]).config
        assert [single.keeps(rule) for rule in rules] == [rule == chosen for rule in rules]
    assert all(recipe(parity=True).config.keeps(rule) for rule in rules)
    assert recipe(parity=True).objective(base()).rules == replace(Rules.released(), kl_weight=1e-2)
    assert recipe().objective(base()).rules == Rules()
    with pytest.raises(ConfigError, match="released"):
        recipe(released=["noise"])


def test_layers_start_apart_or_as_copies() -> None:
    """Upstream's first layer is copied, and only among the layers of one width."""
    for released, alike in (([], False), (["text_layers"], True)):
        encoder = recipe(released=released).objective(base()).build().context_encoder
        first, second = (layer.attn.W_Q.weight for layer in encoder.layers)
        assert torch.equal(first, second) is alike
        assert first is not second


def given(batch: int, seed: int = 0, null: Tensor | None = None) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    return {
        "text": torch.randn(batch, 6, 32, generator=g),
        "mask": torch.ones(batch, 6),
        "images": torch.randn(batch, 4, 8, 8, generator=g),
        "image_latents": torch.randn(batch, 256, generator=g),
        "logit_scale": torch.tensor(math.log(1 / 0.07)),
        "t": torch.rand(batch, generator=g),
        "noise": torch.randn(batch, 256, generator=g),
        "null": torch.zeros(batch, dtype=torch.bool) if null is None else null,
        "partner_draw": torch.rand(batch, generator=g),
        "earlier": None,
    }


def test_guidance_is_trained_at_its_rate_whatever_the_batch() -> None:
    """Batches of four at 10 %: upstream trains 2.7 % of the samples without their text, we 10 %."""
    draws = Draws(0, [(0, index) for index in range(4000)])
    images, drawn, partner = torch.randn(4000, 1, 1, 1), draws.chance(0.1), draws.uniform()
    shares = {}
    for parity in (True, False):
        null, swapped = 0, 0
        for rows in torch.arange(4000).split(4):
            if parity:
                targets, effective = losses.swapped_among_nulls(images[rows], drawn[rows])
            else:
                everyone = losses.Everyone(images[rows], 0)
                effective = drawn[rows]
                targets = losses.others_images(images[rows], everyone, effective, partner[rows])
            changed = (targets != images[rows]).flatten(1).any(1)
            assert torch.equal(changed, effective)  # a null sample never keeps its own image, no other loses it
            null, swapped = null + int(effective.sum()), swapped + int(changed.sum())
        shares[parity] = null / 4000
    assert shares[True] == pytest.approx(0.027, abs=0.008)
    assert shares[False] == pytest.approx(0.1, abs=0.012)


def test_partners_are_drawn_evenly() -> None:
    images = torch.arange(5.0).view(5, 1, 1, 1)
    null, draw = torch.ones(5, dtype=torch.bool), torch.rand(2000, 5, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(5, 5)
    for row in draw:
        targets = losses.others_images(images, losses.Everyone(images, 0), null, row)
        seen[torch.arange(5), targets.flatten().long()] += 1
    assert seen.diagonal().sum() == 0
    others = seen[~torch.eye(5, dtype=torch.bool)]
    assert others.min() > 430
    assert others.max() < 570


def test_a_batch_of_one_takes_an_earlier_image() -> None:
    model, null = made(DIT), torch.ones(1, dtype=torch.bool)
    first = terms(model, **given(1, null=null), rules=Rules())
    assert not first.null.any()
    earlier = torch.full((1, 4, 8, 8), 3.0)
    later = terms(model, **given(1, null=null) | {"earlier": earlier}, rules=Rules())
    assert later.null.all()
    assert torch.equal(later.image_latent, earlier)


@pytest.mark.parametrize("config", [DIT, DIMR], ids=["dit", "dimr"])
def test_null_samples_leave_the_text_encoder_alone(config: Any) -> None:
    """The same loss; the text encoder's gradient is that of the other samples and of the KL term alone."""
    model, null = made(config), torch.tensor([True, False, True])
    inputs = given(3, null=null) | {"image_latents": None, "logit_scale": None}
    head = model.context_encoder.linear.weight
    found = {
        teaches: terms(model, **inputs, rules=Rules(null_teaches_text=teaches, kl_weight=0.0))
        for teaches in (True, False)
    }
    assert torch.equal(found[True].loss, found[False].loss)
    of_nulls = [torch.autograd.grad(one.loss[null].sum(), head, retain_graph=True)[0] for one in found.values()]
    assert of_nulls[0].abs().max() > 0
    assert of_nulls[1].abs().max() == 0
    others = [torch.autograd.grad(one.loss[~null].sum(), head)[0] for one in found.values()]
    torch.testing.assert_close(*others)


@pytest.mark.parametrize("config", [DIT, DIMR], ids=["dit", "dimr"])
def test_temperature(config: Any) -> None:
    """Ours multiplies the cosines by exp(logit_scale) = 14.3, upstream by the raw 2.66."""
    model, inputs = made(config), given(6)
    found = {raw: terms(model, **inputs, rules=Rules(raw_temperature=raw)) for raw in (True, False)}
    texts = torch.nn.functional.normalize(found[False].text_latent.flatten(1), dim=-1)
    images = torch.nn.functional.normalize(inputs["image_latents"], dim=-1)
    for raw, scale in ((True, 2.659), (False, 14.286)):
        logits = scale * images @ texts.T
        labels = torch.arange(6)
        cross = torch.nn.functional.cross_entropy
        wanted = (cross(logits, labels) + cross(logits.T, labels)) / 2
        torch.testing.assert_close(found[raw].contrastive, wanted, atol=1e-3, rtol=1e-3)


def test_log_variance_is_clamped_by_default() -> None:
    """A head that runs away gives a finite loss; upstream's is infinite."""
    model = made(DIT)
    with torch.no_grad():
        model.context_encoder.linear.bias[256:] = 200.0
    ours, upstream = (terms(model, **given(2), rules=Rules(free_log_variance=free)) for free in (False, True))
    assert ours.loss.isfinite().all()
    assert float(ours.posterior.log_var.detach().max()) == LOG_VAR_RANGE[1]
    assert not upstream.loss.isfinite().all()


def test_kl_is_the_published_one() -> None:
    mean, log_var = torch.randn(2, 3, 16)
    found = losses.kl_loss(Posterior(mean, log_var))
    wanted = -0.5 * (1 + log_var - (0.3 * mean) ** 6 - log_var.exp()).sum(-1)
    torch.testing.assert_close(found, wanted)
    assert losses.kl_loss(Posterior(torch.zeros(1, 4), torch.zeros(1, 4))) == 0


def test_the_autoencoders_noise_is_fresh_each_epoch() -> None:
    objective, chosen = recipe().objective(base()), recipe()
    model, batch = objective.build().eval(), recipe().objective(base()).collate(samples(chosen, 4))
    batch["moments"][:, 4:] = 0.0  # a wide posterior, so that the draw shows

    def flow(epoch: int) -> float:
        return float(objective.loss(model, batch, Draws(0, [(epoch, n) for n in range(4)]), 0.0)["flow_loss"])

    assert flow(0) == flow(0)
    assert flow(0) != flow(1)
    moments, noise = torch.randn(2, 2, 8, 3, 3)[0], torch.zeros(2, 4, 3, 3)
    torch.testing.assert_close(latents_of(moments, noise, 0.5), 0.5 * moments[:, :4])


def test_weight_decay() -> None:
    model = made(DIMR)
    for temperature in (False, True):
        decayed, kept = (sum(p.numel() for p in group["params"]) for group in decay_groups(model, temperature))
        time_constants = sum(p.numel() for n, p in model.named_parameters() if "nodecay" in n)
        assert kept == time_constants + (0 if temperature else 1)
        assert decayed + kept == sum(p.numel() for p in model.parameters())


def test_padding_is_neither_stored_nor_read() -> None:
    """Short and long captions: as many rows as tokens, and the model sees no difference to the whole text zeroed."""
    chosen = recipe()
    short, long = samples(chosen, 2, ["a two", "a three above a seven and an eight"])
    assert len(short["text"]) == short["tokens"].item() == 4
    assert len(long["text"]) == long["tokens"].item() > 10
    whole = samples(recipe(parity=True), 2, ["a two", "a three above a seven and an eight"])
    assert len(whole[0]["text"]) == 16
    objective = chosen.objective(base())
    model = objective.build().eval()
    ours = objective.collate([short, long])
    theirs = objective.collate(whole)
    assert torch.equal(ours["mask"], theirs["mask"])
    with torch.no_grad():
        torch.testing.assert_close(
            model.context_encoder(ours["text"], ours["mask"]).mean,
            model.context_encoder(theirs["text"], theirs["mask"]).mean,
        )


@pytest.mark.parametrize("stage", [stage for stage in MODELS if "clip" in stage or not stage])
def test_a_base_of_another_kind_and_the_same_width_is_refused(stage: str, tmp_path: Path) -> None:
    """T5-base is as wide as CLIP ViT-L/14."""
    config = tmp_path / "text_encoder" / "config.json"
    config.parent.mkdir()
    chosen = Recipe("paper", _config(stage, "paper"))
    config.write_text(json.dumps({"model_type": "clip_text_model", "hidden_size": 768}))
    chosen.check_base(tmp_path.joinpath)
    config.write_text(json.dumps({"model_type": "t5", "d_model": 768}))
    with pytest.raises(ConfigError, match=r"\(t5\) gives states of width 768, CrossFlow .* reads 768 \(clip\)"):
        chosen.check_base(tmp_path.joinpath)


def test_features_of_another_model_are_refused() -> None:
    objective, found = recipe().objective(base()), samples(recipe(), 1)
    with pytest.raises(ConfigError, match="width 64, the model reads 128"):
        objective.collate([found[0] | {"text": np.zeros((3, 64), np.float16)}])
    with pytest.raises(ConfigError, match=r"moments are \[8, 16, 16\], the model's latents \(4, 8, 8\)"):
        objective.collate([found[0] | {"moments_32": np.zeros((8, 16, 16), np.float16)}])


def _train(
    folder: Path, processes: int, steps: int = 6, stage: str = "crossflow", parts: Path | None = None, **train: Any
) -> Path:
    folder.mkdir(parents=True)
    settings = {
        "steps": steps, "batch_size": 8, "micro_batch": 8 // processes, "processes": processes, "log_every": 1,
        "warmup_steps": 2, "checkpoint_every_s": None, "preview_every": None, "loader_workers": 0, **train,
    }  # fmt: skip
    plan = {
        "recipe": stage, "overrides": {"null_share": 0.5, "train": settings}, "base": str(parts or base()), "count": 64,
        "folder": str(folder / "out"),
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    paths = f"{HERE.parents[1] / 'src'}:{HERE}"
    LocalLauncher(environment={"PYTHONPATH": paths}).run(
        "crossflow_worker", [str(folder / "plan.json")], processes, folder / "logs"
    )
    return folder / "out"


def trained_names(folder: Path) -> set[str]:
    from atelier.convert.crossflow import folder_weights

    return set(folder_weights(folder))


def _log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_shards_of_another_model_are_refused_before_a_rank_starts() -> None:
    """By the manifest alone: another language model, one of the same width, another resolution."""
    chosen = Recipe("paper", PROFILES["paper"])
    fields = {"moments_256": ["bfloat16", [8, 32, 32]], "text": ["bfloat16", [20, 768]]}
    own = {"language_model": "clip", "text_width": 768, "fields": fields}
    chosen.check_features(own)
    for changed, said in (
        (
            {"language_model": "t5", "text_width": 4096},
            "the shards' text is of t5, 4096 wide; this model reads clip, 768",
        ),
        ({"language_model": "t5"}, "the shards' text is of t5, 768 wide; this model reads clip"),
        ({"fields": {"moments_512": ["bfloat16", [8, 64, 64]]}}, "the features are of 512 px, the model reads 256"),
        ({"fields": fields | {"moments_256": ["bfloat16", [8, 64, 64]]}}, "the shards' moments_256 is"),
    ):
        with pytest.raises(ConfigError) as caught:
            chosen.check_features(own | changed)
        assert said in str(caught.value)


def test_one_process_and_two_train_alike(tmp_path: Path) -> None:
    """Negatives and partners are those of all processes: the losses and the weights do not depend on how many."""
    one, two = _train(tmp_path / "one", 1), _train(tmp_path / "two", 2)
    for alone, shared in zip(_log(one), _log(two), strict=True):
        for name in ("loss", "flow_loss", "contrastive_loss", "kl_loss", "null_share"):
            assert shared[name] == pytest.approx(alone[name], rel=2e-4), (name, alone["step"])
    assert 0.3 < sum(line["null_share"] for line in _log(two)) / 6 < 0.7
    first, second = (trainable_state(out / "checkpoint") for out in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=3e-4, rtol=1e-2, msg=name)


def test_trained_exported_drawn(tmp_path: Path) -> None:
    """A DiT twin through the engine to a folder that opens, in bf16 with ZeRO 2, and its moving average."""
    chosen: Recipe = get("crossflow:512_t5_dit", "laptop")
    chosen.make_text_model(tmp_path / "base")
    shutil.copytree(base() / "vae", tmp_path / "base" / "vae")
    out = _train(
        tmp_path / "run", 1, stage="crossflow:512_t5_dit", parts=tmp_path / "base", precision="bf16", preview_every=6
    )
    state = trainable_state(out / "checkpoint", average=True)
    (tmp_path / "model").mkdir()
    counts = chosen.export(tmp_path / "base", state, tmp_path / "model")
    assert counts["total"] == 1_579_280 + 1_766_864
    towers = {name for name in state if name.startswith("open_clip")}
    assert towers
    assert trained_names(tmp_path / "model") == {released_name(name) for name in state.keys() - towers} | {"pos_embed"}
    drawing = chosen.pipeline(tmp_path / "model")
    images = chosen.sample(drawing, chosen.layouts(2, seed=1), steps=2, guidance=2.0)
    assert [image.size for image in images] == [(64, 64)] * 2
    assert list(tmp_path.glob("run/out/previews/*")) or list(tmp_path.glob("run/out/**/*.png"))
