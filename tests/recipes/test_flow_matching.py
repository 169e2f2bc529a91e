"""Straight flows: noise levels, draws and weights, against diffusers."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from atelier.errors import ConfigError
from atelier.recipes import flow_matching as flows
from atelier.training.protocol import Draws

DEV = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


@pytest.mark.parametrize(("config", "shift"), [(DEV, 1.0), ({"shift": 1.0}, 1.0), ({"shift": 3.0}, 3.0)])
def test_the_table_is_the_schedulers(config: dict[str, float], shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    table = flows.sigma_table(1000, shift)
    torch.testing.assert_close(table, scheduler.sigmas.cpu(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(table * 1000, scheduler.timesteps.cpu(), atol=1e-3, rtol=1e-6)


def test_noising_goes_from_data_to_noise() -> None:
    data, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    found = flows.interpolant(data, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(found.x[0], data[0])
    assert torch.equal(found.x[2], noise[2])
    torch.testing.assert_close(found.x[1], 0.75 * data[1] + 0.25 * noise[1])
    assert torch.equal(found.velocity, noise - data)


@pytest.mark.parametrize("scheme", ["uniform", "logit_normal", "mode"])
def test_draws_are_diffusers(scheme: str) -> None:
    generator = torch.Generator().manual_seed(5)
    theirs = compute_density_for_timestep_sampling(scheme, 64, 0.3, 1.2, flows.MODE_SCALE, generator=generator)
    generator.manual_seed(5)
    draw = (torch.randn if scheme == "logit_normal" else torch.rand)(64, generator=generator)
    torch.testing.assert_close(flows.positions(scheme, draw, 0.3, 1.2), theirs)  # type: ignore[arg-type]


@pytest.mark.parametrize("weighting", ["none", "sigma_sqrt", "cosmap"])
def test_weights_are_diffusers(weighting: str) -> None:
    sigmas = torch.tensor([0.01, 0.5, 0.99])
    theirs = compute_loss_weighting_for_sd3(weighting, sigmas)
    torch.testing.assert_close(flows.loss_weights(weighting, sigmas), theirs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("scheme", "mean", "spread"), [("uniform", 0.5, 0.289), ("sigmoid", 0.5, 0.208)])
def test_levels_have_the_schemes_distribution(scheme: str, mean: float, spread: float) -> None:
    draws = Draws(3, [(0, index) for index in range(4000)])
    sigmas = flows.drawn_sigmas(draws, scheme, flows.sigma_table())  # type: ignore[arg-type]
    assert float(sigmas.mean()) == pytest.approx(mean, abs=0.02)
    assert float(sigmas.std()) == pytest.approx(spread, abs=0.01)
    assert float(sigmas.min()) > 0
    assert float(sigmas.max()) <= 1


def test_a_large_draw_of_sigmoid_is_little_noise() -> None:
    keys = [(0, index) for index in range(8)]
    sigmas = flows.drawn_sigmas(Draws(1, keys), "sigmoid", flows.sigma_table())
    torch.testing.assert_close(sigmas, torch.sigmoid(-Draws(1, keys).normal()))
    table = flows.drawn_sigmas(Draws(1, keys), "logit_normal", flows.sigma_table())
    torch.testing.assert_close(sigmas, table, atol=1.1e-3, rtol=0)


def test_one_sigmoid_draw_is_like_one_of_ai_toolkits_table() -> None:
    table = flows.sigmoid_timesteps(torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    assert bool((table.diff() <= 0).all())
    own = flows.drawn_sigmas(Draws(0, [(0, i) for i in range(20_000)]), "sigmoid", flows.sigma_table()) * 1000
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(own.quantile(quantiles), table.quantile(quantiles), atol=8.0, rtol=0)


def test_a_draw_does_not_depend_on_company() -> None:
    table = flows.sigma_table()
    for scheme in ("uniform", "sigmoid", "logit_normal", "mode"):
        every = flows.drawn_sigmas(Draws(3, [(0, 1), (0, 2)]), scheme, table)  # type: ignore[arg-type]
        alone = flows.drawn_sigmas(Draws(3, [(0, 2)]), scheme, table)  # type: ignore[arg-type]
        assert torch.equal(every[1:], alone)


def test_levels_stay_in_the_table() -> None:
    table = flows.sigma_table(10)
    assert flows.at(table, torch.tensor([0.0, 0.0999, 0.1, 0.9999, 1.0])).tolist() == pytest.approx(
        [1, 1, 0.9, 0.1, 0.1]
    )


def test_standardised_noise_has_one_spread() -> None:
    found = flows.standardised(torch.randn(2, 3, 8, 8) * torch.tensor([1.0, 5.0, 0.1]).view(1, 3, 1, 1))
    torch.testing.assert_close(found.std((2, 3)), torch.ones(2, 3), atol=1e-4, rtol=0)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ConfigError, match="no timestep scheme"):
        flows.positions("cosmap", torch.rand(2))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no loss weighting"):
        flows.loss_weights("mode", torch.rand(2))  # type: ignore[arg-type]
