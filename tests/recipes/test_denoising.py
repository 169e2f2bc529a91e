"""Noising against diffusers' own schedulers, and the weights of the loss."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from atelier.errors import ConfigError
from atelier.recipes.denoising import NoiseSchedule, box_weights, weighted_mse
from atelier.recipes.twins.sdxl import make_scheduler
from atelier.training.protocol import Draws


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noising_is_diffusers_own(kind: str) -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=kind)
    schedule = NoiseSchedule.of(scheduler)
    x, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    noised, target = schedule.noised(x, noise, t)
    torch.testing.assert_close(noised, scheduler.add_noise(x, noise, t))
    expected = noise if kind == "epsilon" else scheduler.get_velocity(x, noise, t)
    torch.testing.assert_close(target, expected)


def test_the_twins_last_timestep_is_pure_noise() -> None:
    schedule = NoiseSchedule.of(make_scheduler())
    x, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    noised, target = schedule.noised(x, noise, torch.tensor([999]))
    torch.testing.assert_close(noised, noise)
    torch.testing.assert_close(target, -x)


def test_an_unknown_prediction_type_is_refused() -> None:
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ConfigError, match="'flow' is not known"):
        NoiseSchedule.of(scheduler)


def test_timesteps_are_uniform_or_biased() -> None:
    schedule = NoiseSchedule.of(make_scheduler())
    keys = [(0, index) for index in range(4000)]
    uniform = schedule.timesteps(Draws(0, keys)).float()
    biased = schedule.timesteps(Draws(0, keys), power=0.4).float()
    assert abs(uniform.mean() - 499.5) < 20
    # E[u^0.4] = 1 / 1.4
    assert abs(biased.mean() - 1000 / 1.4) < 20
    assert uniform.min() >= 0
    assert biased.max() <= 999


def test_box_weights() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.25], [0.0, 0.0, 1.0, 1.0]]])
    weights = box_weights(boxes, torch.tensor([[1.0, 0.0]]), (8, 8), inside=4.0)
    assert weights.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(weights.mean(), 1.0, rtol=1e-6)
    inside, outside = weights[0, 0, 0, 0], weights[0, 0, 7, 7]
    np.testing.assert_allclose(inside / outside, 4.0, rtol=1e-6)
    assert (weights[0, 0] == inside).sum() == 2 * 4


def test_weighted_mse_is_a_mean_a_sample() -> None:
    prediction, target = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2) * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(weighted_mse(prediction, target), torch.tensor([1.0, 9.0]))
