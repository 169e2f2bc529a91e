"""CrossFlow's loss with its gradients, and whole optimiser steps: the kinds ``loss_*`` and ``train_*``."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atelier.models.crossflow.model import CrossFlow, released_name
from atelier.recipes import crossflow_losses as losses
from atelier.recipes.crossflow_objective import Rules, Terms, decay_groups, terms
from atelier.training.config import TrainConfig
from atelier.training.optimizer import build_optimizer
from tests.parity.case import Case, Comparison
from tests.parity.crossflow import whole_model


class Given(NamedTuple):
    """The inputs of one step by name."""

    tensors: dict[str, Tensor]
    logit_scale: Tensor


def _terms(model: CrossFlow, spec: dict[str, Any], given: Given) -> Terms:
    """Upstream's loss of a batch whose draws are given."""
    inputs = given.tensors
    rules = replace(
        Rules.released(),
        kl_weight=spec.get("kld_weight", losses.KL_WEIGHT),
        sigma_min=spec.get("sigma_min", losses.SIGMA_MIN),
    )
    return terms(
        model,
        text=inputs["text"],
        mask=inputs["mask"],
        images=inputs["x1"],
        image_latents=inputs["image_features"],
        logit_scale=given.logit_scale,
        t=inputs["t_normal"].sigmoid(),
        noise=inputs["eps"],
        null=inputs["null_draw"].bool(),
        partner_draw=torch.zeros(len(inputs["x1"])),
        rules=rules,
        earlier=None,
    )


def loss(case: Case) -> dict[str, Tensor]:
    """Every term, what it was computed from, and gradients of the mean."""
    model = whole_model(case)
    scale = nn.Parameter(case.inputs["logit_scale"].clone())
    found = _terms(model, case.spec, Given(case.inputs, scale))
    found.loss.mean().backward()
    grads = {released_name(name): p.grad for name, p in model.named_parameters()} | {
        "open_clip.logit_scale": scale.grad
    }
    result = {
        "t": found.t,
        "null_indicator": found.null.float(),
        "mu": found.posterior.mean,
        "log_var": found.posterior.log_var,
        "x0": found.text_latent,
        "x1_used": found.image_latent,
        "x_t": found.path.x,
        "velocity_target": found.path.velocity,
        "loss_per_sample": found.loss,
        "loss_mean": found.loss.mean(),
        "loss_diff": found.flow.per_sample,
        "clip_loss": found.contrastive,
        "kld_loss": found.kl,
    }
    result |= {f"pred{k}": prediction for k, prediction in enumerate(found.flow.predictions)}
    result |= {f"target_{target.shape[-1]}": target for target in found.flow.targets}
    return result | {f"grad.{name}": grad for name, grad in grads.items() if grad is not None}


def train(case: Case) -> Comparison:
    """Steps of AdamW with upstream's warm-up (whose first step is lost) and average, from fixed draws.

    AdamW turns float noise in tiny gradients into steps of the learning rate, so parameters are held to the case's own
    measure: 99.5 % of a tensor within 2e-5, all of it within twice the sum of the learning rates.
    """
    spec, model = case.spec, whole_model(case)
    settings, steps = spec["optimizer"], len(case.inputs["text"])
    holder = nn.Module()
    holder.add_module("model", model)
    holder.register_parameter("logit_scale", nn.Parameter(case.inputs["logit_scale"].clone()))
    config = TrainConfig(
        steps=steps,
        batch_size=1,
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
    )
    optimizer = build_optimizer(decay_groups(holder, decay_temperature=True), config)
    parameters = {released_name(name.removeprefix("model.")): p for name, p in holder.named_parameters()}
    parameters["open_clip.logit_scale"] = parameters.pop("logit_scale")
    average = {name: p.detach().clone() for name, p in parameters.items()}
    means, rates = [], []
    for step in range(steps):
        rate = settings["lr"] * min(step / spec["warmup_steps"], 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        given = {name: t[step] for name, t in case.inputs.items() if name != "logit_scale"}
        found = _terms(model, spec, Given(given, parameters["open_clip.logit_scale"])).loss.mean()
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        means.append(found.detach())
        rates.append(rate)
        for name, p in parameters.items():
            average[name].lerp_(p.detach(), 1 - spec["ema_rate"])
    reached = {f"final.{name}": p.detach() for name, p in parameters.items()}
    reached |= {f"ema.{name}": value for name, value in average.items()}
    ours: dict[str, Any] = {"loss_mean": torch.stack(means), "lr_used": torch.tensor(rates)}
    expected: dict[str, Any] = {}
    for name, wanted in case.outputs.items():
        if name in ours:
            expected[name] = wanted
            continue
        difference = (reached[name] - wanted).abs()
        far = float((difference > 2e-5).float().mean())
        ours[name] = (far <= 0.005, float(difference.max()) <= 2 * sum(rates))
        expected[name] = (True, True)
    return Comparison(ours, expected)


KINDS: dict[str, Callable[[Case], dict[str, Tensor] | Comparison]] = {
    "loss_dit": loss,
    "loss_dimr": loss,
    "train_dit": train,
    "train_dimr": train,
}
