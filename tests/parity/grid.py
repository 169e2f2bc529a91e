"""GRID's numerics: noise levels, losses and whole LoRA steps on a tiny FLUX (``flow_match``, ``train_step``), sizes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from atelier.models.flux.configs import DEV, SCHNELL, on_meta
from atelier.models.flux.latents import image_ids, pack, text_ids, unpack
from atelier.models.flux.lora import Targets, add_lora, load_lora_state, lora_state, target_modules
from atelier.models.flux.velocity import velocity
from atelier.recipes import flow_matching as flows
from atelier.recipes.grid_loss import ALPHA, grid_loss
from tests.parity.case import Case, Comparison

FLOAT = (1e-5, 1e-5)
"""(atol, rtol): the facts' bound for the same float32 sums on another machine."""


def neighbour(case: Case, kind: str, suffix: str = "safetensors") -> Path:
    """Another kind's file of the same letter."""
    return case.path.with_name(f"{kind}_{case.path.stem.rpartition('_')[2]}.{suffix}")


def tiny_flux(case: Case) -> FluxTransformer2DModel:
    """The model that the case's neighbours are on, flux_tiny_base of the same letter."""
    path = neighbour(case, "flux_tiny_base", "json")
    model: FluxTransformer2DModel = FluxTransformer2DModel.from_config(json.loads(path.read_text()))
    model.load_state_dict(load_file(path.with_suffix(".safetensors")))
    return model.eval()


def flow_match(case: Case) -> Comparison:
    """Levels, noising, packing, target, diffusers' weightings, GRID's loss, ai-toolkit's noise and timesteps."""
    spec, given = case.spec, case.tensors
    table = flows.sigma_table(spec["scheduler"]["num_train_timesteps"])
    sigmas = flows.at(table, given["u"])
    path = flows.interpolant(given["latents"], given["noise"], sigmas)
    height, width = given["latents"].shape[-2:]
    noise = flows.standardised(given["noise"])
    generator = torch.Generator().manual_seed(42)
    ours: dict[str, Any] = {
        "sigmas": sigmas,
        "timesteps": sigmas * 1000,
        "noisy": path.x,
        "target": path.velocity,
        "packed_noisy": pack(path.x),
        "img_ids": image_ids(height, width),
        "txt_ids": text_ids(given["txt_ids"].shape[0]),
        "model_pred": unpack(given["model_pred_packed"], height, width),
        "aitk_noise_standardised": noise,
        "aitk_noisy": flows.interpolant(given["latents"], noise, given["aitk_t"] / 1000).x,
        "aitk_sigmoid_timesteps_seed42": flows.sigmoid_timesteps(torch.randn(1000, generator=generator)),
    }
    model = tiny_flux(case)
    with torch.no_grad():
        ours["model_pred_packed"] = pack(
            velocity(
                model,
                path.x,
                sigmas,
                given["encoder_hidden_states"],
                given["pooled_projections"],
                _guidance(model, given),
            )
        )
    expected: dict[str, Any] = {name: given[name] for name in ours}
    for scheme, wanted in spec["schemes"].items():
        found = _scheme(scheme, table, sigmas, given["model_pred"], path.velocity)
        ours |= {f"{scheme}.{name}": value for name, value in found.items()}
        expected |= {f"{scheme}.{name}": torch.tensor(value) for name, value in wanted.items()}
    rows, columns = spec["grid_loss"]["rows"], spec["grid_loss"]["cols"]
    plain, raster = (grid_loss(given["model_pred"], path.velocity, rows, columns, wrap=wrap) for wrap in (False, True))
    terms = {
        "base_mse": plain.base,
        "flow_row_only": plain.flow,
        "total_upstream": plain.total,
        "flow_raster": raster.flow,
        "total_raster": raster.total,
    }
    ours |= {name: value.mean() for name, value in terms.items()}
    # Upstream's names go on in brackets or with their formula.
    said = {name: value for name in terms for key, value in spec["grid_loss"].items() if key.startswith(name)}
    expected |= {name: torch.tensor(said[name]) for name in terms}
    return Comparison(ours, expected, FLOAT)


def _scheme(scheme: str, table: Tensor, sigmas: Tensor, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """diffusers' five names are two things: how levels are drawn, how losses are weighed."""
    weights = flows.loss_weights("none" if scheme in ("logit_normal", "mode") else scheme, sigmas)  # type: ignore[arg-type]
    loss = grid_loss(prediction, target, 1, 1, weights=weights).total
    generator = torch.Generator().manual_seed(123)
    draw = (torch.randn if scheme == "logit_normal" else torch.rand)(6, generator=generator)
    u = flows.positions(scheme if scheme in ("logit_normal", "mode") else "uniform", draw)  # type: ignore[arg-type]
    return {
        "loss_per_sample": loss,
        "loss": loss.mean(),
        "weight": weights,
        "density_u_seed123_n6": u,
        "density_indices": ((1 - flows.at(table, u)) * len(table)).round(),
    }


def train_step(case: Case) -> Comparison:
    """Steps of AdamW on the GRID loss: gradients, parameters and their average, from the same beginning.

    AdamW turns float noise in tiny gradients into parts of a step, so parameters have a measure of their own: 99.5 % of
    a tensor as near as everything else, all of it within a tenth of one step.
    """
    spec, given = case.spec, load_file(case.path.with_name(case.spec["inputs"]))
    model = tiny_flux(case)
    settings, init = json.loads(neighbour(case, "lora", "json").read_text())["lora"], _named(case, "init")
    rank, alpha = next(len(tensor) for name, tensor in init.items() if "lora_A" in name), settings["alpha"]
    trained = add_lora(model, _targets(model, init), rank, alpha)
    load_lora_state(model, init)
    rule = spec["optimizer"]
    optimizer = torch.optim.AdamW(
        trained,
        lr=rule["lr"],
        betas=rule["betas"],
        eps=rule["eps"],
        weight_decay=rule["weight_decay"],
    )
    average = {name: tensor.clone() for name, tensor in lora_state(model).items()}
    ours: dict[str, Any] = {}
    rows, columns = spec["grid"]
    path = flows.interpolant(given["latents"], given["noise"], given["sigmas"])
    for step in range(len(spec["log"])):
        found = velocity(
            model,
            path.x,
            given["sigmas"],
            given["encoder_hidden_states"],
            given["pooled_projections"],
            _guidance(model, given),
        )
        loss = grid_loss(found, path.velocity, rows, columns, spec["alpha_flow"], spec["beta_base"])
        optimizer.zero_grad()
        loss.total.mean().backward()
        if step == 0:
            named = {name.replace(".default.", "."): p for name, p in model.named_parameters() if p.requires_grad}
            ours |= {f"grad0.{name}": p.grad.clone() for name, p in named.items() if p.grad is not None}
        ours |= {
            f"{step}.base": loss.base.mean(),
            f"{step}.flow": loss.flow.mean(),
            f"{step}.loss": loss.total.mean(),
            f"{step}.grad_norm_before_clip": torch.nn.utils.clip_grad_norm_(trained, spec["clip"]),
        }
        optimizer.step()
        for name, tensor in lora_state(model).items():
            average[name].lerp_(tensor, 1 - spec["ema_decay"])
    reached = {f"param3.{name}": tensor for name, tensor in lora_state(model).items()}
    reached |= {f"ema3.{name}": tensor for name, tensor in average.items()}
    expected: dict[str, Any] = {name: t for name, t in case.tensors.items() if name.startswith("grad0.")}
    for name, tensor in case.tensors.items():
        if name.startswith(("param3.", "ema3.")):
            difference = (reached[name] - tensor).abs()
            far = float((difference > FLOAT[0]).float().mean())
            ours[name] = (far <= 0.005, float(difference.max()) <= rule["lr"] / 10)
            expected[name] = (True, True)
    expected |= {
        f"{entry['step']}.{name}": torch.tensor(value)
        for entry in spec["log"]
        for name, value in entry.items()
        if name != "step"
    }
    assert spec["alpha_flow"] == ALPHA
    return Comparison(ours, expected, FLOAT)


def _targets(model: FluxTransformer2DModel, init: dict[str, Tensor]) -> Targets:
    """The choice of layers that a case trains."""
    layers = {name.partition(".lora_")[0] for name in init}
    choices: tuple[Targets, ...] = ("blocks", "diffusers", "attention")
    return next(choice for choice in choices if set(target_modules(model, choice)) == layers)


def _guidance(model: FluxTransformer2DModel, given: dict[str, Tensor]) -> Tensor | None:
    return given["guidance"] if model.config.guidance_embeds else None


def _named(case: Case, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in case.tensors.items() if name.startswith(f"{prefix}.")}


def param_counts(case: Case) -> Comparison:
    """How many parameters and layers each choice trains, on the real sizes without their weights."""
    ours: dict[str, Any] = {}
    choices = {"aitk_all_block_linears": "blocks", "diffusers_script": "diffusers", "attn_qkvo_only": "attention"}
    for name, targets in choices.items():
        for rank in (4, 16, 256):
            model = on_meta(DEV)
            trained = add_lora(model, targets, rank, rank)  # type: ignore[arg-type]
            ours[f"{name}_r{rank}"] = [sum(p.numel() for p in trained), len(trained) // 2]
    base = on_meta(DEV)
    ours["dev_base"] = sum(p.numel() for p in base.parameters())
    ours["schnell_base"] = sum(p.numel() for p in on_meta(SCHNELL).parameters())
    return Comparison(ours, {name: case.spec[name] for name in ours})


KINDS: dict[str, Callable[[Case], dict[str, Tensor] | Comparison]] = {
    "flow_match": flow_match,
    "train_step": train_step,
    "lora_param": param_counts,
}
