"""CrossFlow's training step and sampling beside the way in which its published code does them, at one small size."""

import io
from dataclasses import replace
from typing import Any

from benchmarks.harness import Bench, Result, side_by_side

BATCH, STEPS, GUIDANCE = 16, 10, 7.0
RESOLUTION = 64


def crossflow_train_vs_plain() -> Result:
    """Samples/s of the recipe's objective with our optimizer and average, over the plain loop's; a DiMR twin, fp32.

    The plain side's image tower reads 256 patches of decoded pixels, as upstream's; ours the latents' 64 patches. Both
    sides have towers of one width, the same flow network, text encoder and batch, one process and one thread.
    """
    import torch

    from atelier.models.crossflow.model import CrossFlow
    from atelier.recipes.twins.assets import shipped
    from atelier.training.optimizer import build_optimizer
    from atelier.training.protocol import Draws
    from benchmarks.support.plain_crossflow import PlainTrainer

    _one_thread()
    recipe, samples = _recipe(), _samples()
    objective = recipe.objective(shipped("sd_twin"))
    torch.manual_seed(0)
    model = objective.build().train()
    settings = recipe.config.train.model_copy(update={"processes": 1})
    optimizer = build_optimizer(objective.parameter_groups(model), settings)
    plain_recipe = _recipe(image_tower="pixels")
    config = plain_recipe.config.model()
    assert config.tower is not None
    tower = config.tower | {"channels": 3, "image_size": RESOLUTION, "patch": RESOLUTION // 16}
    plain = PlainTrainer(CrossFlow(replace(config, tower=tower)).train(), 1e-5, objective.scaling_factor)
    step = 0

    def ours() -> None:
        nonlocal step
        batch = objective.collate(samples)
        draws = Draws(0, [(step, index) for index in range(BATCH)])
        optimizer.zero_grad()
        objective.loss(model, batch, draws, 0.0)["loss"].backward()
        optimizer.step()
        step += 1

    taken_plain, taken = side_by_side(lambda: plain(samples), ours, rounds=9)
    return Result(
        "crossflow_train_vs_plain",
        round(taken_plain / taken, 3),
        "x",
        bar=1.5,
        note=f"{BATCH / taken:.1f} samples/s against {BATCH / taken_plain:.1f}",
    )


def crossflow_sample_vs_plain() -> Result:
    """A picture's latents by our sampler over upstream's way: same weights, evaluations, guidance and result."""
    import torch

    from atelier.recipes.twins.assets import shipped
    from atelier.sampling.flow_solvers import solve
    from atelier.sampling.guided_flow import GuidedFlow
    from benchmarks.support.plain_crossflow import PlainSampler

    _one_thread()
    torch.manual_seed(0)
    model = _recipe().objective(shipped("sd_twin")).build().eval()
    start = torch.randn(1, *model.flow.latent_shape)
    plain, guided = PlainSampler(model), GuidedFlow(model.flow, GUIDANCE)

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return solve(guided, start, STEPS, "euler_released")

    torch.testing.assert_close(ours(), plain(start, STEPS, GUIDANCE), atol=1e-3, rtol=1e-3)
    taken_plain, taken = side_by_side(lambda: plain(start, STEPS, GUIDANCE), ours, rounds=9)
    return Result(
        "crossflow_sample_vs_plain",
        round(taken_plain / taken, 3),
        "x",
        bar=1.5,
        note=f"{taken:.3f} s against {taken_plain:.3f} s for {STEPS} guided steps of one picture",
    )


BENCHES: dict[str, Bench] = {
    "crossflow_train_vs_plain": crossflow_train_vs_plain,
    "crossflow_sample_vs_plain": crossflow_sample_vs_plain,
}


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _recipe(**changes: Any) -> Any:
    from atelier.recipes.registry import get

    return get("crossflow", "laptop", {"resolution": RESOLUTION, **changes})


def _samples() -> list[dict[str, Any]]:
    """A batch as each side reads it: our shards' fields, and upstream's (the text padded, the picture as JPEG)."""
    import numpy as np
    from PIL import Image

    from atelier.data import bfloat16, digit_pairs, digits
    from atelier.data.raw_example import RawExample
    from atelier.recipes.twins.assets import shipped

    rng, glyphs = np.random.default_rng(0), digits.split().canvas
    drawn = [digit_pairs.draw(rng, RESOLUTION, glyphs) for _ in range(BATCH)]
    examples = [
        RawExample(str(n), b"", (RESOLUTION,) * 2, canvas.caption, np.zeros((0, 4), np.float32), np.zeros(0), ())
        for n, canvas in enumerate(drawn)
    ]
    pixels = np.stack([canvas.pixels for canvas in drawn])
    samples = _recipe().encoder(shipped("sd_twin")).encode(pixels, examples)
    whole = _recipe(parity=True).encoder(shipped("sd_twin")).encode(pixels, examples)
    for sample, padded, canvas in zip(samples, whole, drawn, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(canvas.pixels).resize((256, 256)).save(buffer, "JPEG", quality=95)
        tokens = len(padded["text"])
        sample["upstream_moments"] = bfloat16.tensor(sample[f"moments_{RESOLUTION}"]).float().numpy()
        sample["whole_text"] = bfloat16.tensor(padded["text"]).float().numpy()
        sample["whole_mask"] = (np.arange(tokens) < padded["tokens"].item()).astype(np.float32)
        sample["jpeg"] = buffer.getvalue()
    return samples
