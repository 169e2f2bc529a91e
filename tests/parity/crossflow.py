"""Runs CrossFlow's networks on the golden cases of ``crossflow/``: text encoder, image head, DiT, DiMR."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atelier.models.crossflow.configs import RELEASED, CrossFlowConfig
from atelier.models.crossflow.dimr import CrossFlowDiMR
from atelier.models.crossflow.dit import CrossFlowDiT
from atelier.models.crossflow.heads import image_head
from atelier.models.crossflow.model import CrossFlow
from atelier.models.crossflow.text_encoder import CrossFlowTextEncoder
from tests.parity.case import Case, Comparison

DIT_FIELDS = ("latent_size", "patch_size", "hidden_size", "depth", "num_heads", "mlp_ratio")
DIMR_FIELDS = ("stage_configs", "norm_type", "pe_type", "block_grad_to_lowres")


def recipe_weights(case: Case) -> dict[str, Tensor]:
    """Weights that are too large to store: drawn in the order and by the rules that the JSON names."""
    draws = np.random.RandomState(case.spec["recipe_seed"])
    weights = {}
    for name, shape, rule in case.spec["weight_order"]:
        r = draws.standard_normal(shape).astype(np.float32)
        value = {
            "one": lambda r=r: 1 + 0.25 * r,
            "bias": lambda r=r: 0.15 * r,
            "fan": lambda r=r, shape=shape: r / np.sqrt(np.prod(shape[1:])),
        }[rule]()
        weights[name] = torch.from_numpy(np.asarray(value, np.float32))
    return weights


def weights_of(case: Case) -> dict[str, Tensor]:
    """The case's weights, stored or drawn."""
    return case.weights or recipe_weights(case)


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights below a prefix, without it; all of them where none is below it."""
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return found or weights


@torch.no_grad()
def text_encoder(case: Case) -> dict[str, Tensor]:
    """Linear head, adaptor head and T5's compressor alike; the latent where the case gives the noise."""
    config, given = case.spec["config"], case.inputs
    model = CrossFlowTextEncoder(
        width=config["d_model"],
        tokens=config["num_token"],
        latent_shape=(config["latten_size"] // 2,),
        num_layers=config["N"],
        num_heads=config["head_num"],
        hidden=config["d_ff"],
        num_reductions=config.get("down_sample_block", 3),
    ).eval()
    model.load_state_dict(under("context_encoder.", weights_of(case)))
    posterior = model(given["text"], given["mask"])
    whole, reduced = model.hidden_states(given["text"], given["mask"])
    result = {"mu": posterior.mean, "log_var": posterior.log_var, "after_layers": whole, "after_reduction": reduced}
    return result | ({"z": posterior.sample(given["eps"])} if "eps" in given else {})


@torch.no_grad()
def head(case: Case) -> dict[str, Tensor]:
    """The image tower's head; its size is that of the output."""
    embedded = case.inputs["image_embed"]
    model = image_head(embedded.shape[1], case.outputs["image_latent"].shape[1]).eval()
    model.load_state_dict(under("open_clip_output.", weights_of(case)))
    return {"image_latent": model(embedded)}


@torch.no_grad()
def dit(case: Case) -> dict[str, Tensor]:
    """DiT's velocity under mixed, conditional and null indicators, and what is computed on the way."""
    config, given = case.spec["config"], case.inputs
    model: Any = CrossFlowDiT(channels=config["channels"], **{name: config[name] for name in DIT_FIELDS}).eval()
    table = model.pos_embed.clone()
    model.load_state_dict(case.weights)
    if not torch.allclose(table, model.pos_embed, atol=1e-6):
        raise AssertionError("the position table that a new network starts with is not the case's")
    x, t, null = given["x"], given["t"], given["null_indicator"].bool()
    condition = model.condition(t, null, len(x))
    return {
        "velocity": model(x, t, null)[-1],
        "velocity_all_cond": model(x, t, torch.zeros_like(null))[-1],
        "velocity_all_null": model(x, t, torch.ones_like(null))[-1],
        "t_emb": model.t_embedder(t),
        "y_emb": model.y_embedder(null),
        "block0": model.blocks[0](model.x_embedder(x) + model.pos_embed, condition),
    }


@torch.no_grad()
def dimr(case: Case) -> dict[str, Tensor]:
    """DiMR's velocities at every stage, for mixed times, one time for all, and without the indicator."""
    config, given = case.spec["config"], case.inputs
    model: Any = CrossFlowDiMR(channels=config["channels"], **{name: config[name] for name in DIMR_FIELDS}).eval()
    model.load_state_dict(case.weights)
    x, t, null = given["x"], time_of(given["log_snr"]), given["null_indicator"].bool()
    constant = time_of(given["log_snr_const"])
    result = {f"stage{k}": v for k, v in enumerate(model(x, t, null))}
    result |= {f"const_time.stage{k}": v for k, v in enumerate(model(x, constant, null))}
    result |= {f"no_indicator.stage{k}": v for k, v in enumerate(model(x, t, None))}
    if torch.equal(constant, constant[:1].expand_as(constant)):
        for k, velocity in enumerate(model(x, constant[:1], null)):
            torch.testing.assert_close(velocity, result[f"const_time.stage{k}"], atol=1e-5, rtol=1e-5)
    return result


def time_of(log_snr: Tensor) -> Tensor:
    """t of log SNR = 4 − 8 t."""
    return (4 - log_snr) / 8


def whole_model(case: Case) -> CrossFlow:
    """Flow network and text encoder of a ``loss``, ``train`` or ``ode`` case, with its weights; no image tower."""
    config, text = case.spec["config"], case.spec["config"]["vte"]
    if "stage_configs" in config:
        coefficients = case.spec.get("loss_coeffs") or None
        flow = {name: config[name] for name in DIMR_FIELDS} | {"loss_coeffs": coefficients}
        last = config["stage_configs"][-1]
        shape = tuple(last[side] * last["input_feature_ratio"] for side in ("max_height", "max_width"))
    else:
        flow = {name: config[name] for name in DIT_FIELDS}
        shape = (config["latent_size"],) * 2
    arguments = {
        "width": text["d"],
        "tokens": text["tok"],
        "num_layers": text["N"],
        "num_heads": text["heads"],
        "hidden": text["dff"],
        "num_reductions": text.get("down_sample_block", 3),
    }
    backbone: Any = "dimr" if "stage_configs" in config else "dit"
    model = CrossFlow(CrossFlowConfig(backbone, flow, arguments, (config["channels"], *shape), tower=None))
    model.load_released({name: t for name, t in case.weights.items() if not name.startswith("open_clip.")})
    return model.eval()


def param(case: Case) -> Comparison:
    """``param_counts``: parameters of every released configuration, by group."""
    ours: dict[str, Any] = {}
    for name in case.spec:
        with torch.device("meta"):
            model = CrossFlow(RELEASED[name.removeprefix("t2i_")])
        groups: Counter[str] = Counter()
        state = model.released_state()
        for key, tensor in state.items():
            parts = key.split(".")
            groups[".".join(parts[:2]) if parts[0] == "stages" else parts[0]] += tensor.numel()
        ours[name] = {
            "total": sum(groups.values()),
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "groups": dict(groups),
            "keys": len(state),
            "nodecay": sum(t.numel() for key, t in state.items() if key.rpartition(".")[2].startswith("nodecay_")),
            "buffers": dict(model.named_buffers()),
        }
    return Comparison(ours, case.spec)


KINDS: dict[str, Callable[[Case], dict[str, Tensor] | Comparison]] = {
    "vte": text_encoder,
    "vte512_adaptor": text_encoder,
    "vte_t5": text_encoder,
    "imghead": head,
    "dit": dit,
    "dimr": dimr,
    "param": param,
}
