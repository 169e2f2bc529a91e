"""Runs our regional layers on the golden cases of ``rich_context/`` (the legacy rules, which the cases follow)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from atelier.models.fourier import fourier_embedding
from atelier.models.grounded_unet import adapter_parameters, freeze_base
from atelier.models.regional.dense import compact
from atelier.models.regional.fusers import (
    InstDiffSelfAttention,
    RegionalCrossAndSelfAttention,
    RegionalCrossAttention,
)
from atelier.models.regional.grounding import Grounding
from atelier.models.regional.position_net import RegionTextNet
from atelier.models.regional.regions import RegionMap, map_regions, unions
from atelier.models.regional.texts import region_texts
from atelier.models.regional.tokens import EncodedTexts, condition, spans
from atelier.models.regional_unet import FuserKind, attach_regional
from tests.parity.case import Case, Comparison

CELL = 8
"""Pixels of a cell."""

MAX_OBJECTS, MAX_REGIONS = 30, 120
"""Upstream's limits."""

DENSE = (
    "reorg_masks",
    "bbox_embeddings",
    "cross_attention_mask",
    "text_embeddings",
    "object_masks",
    "reorg_union_masks",
)
"""The arguments of ``compact`` in their order."""

_BASES = Path(__file__).parent / "golden/gligen"


def region_map(case: Case) -> Comparison:
    """Regions, their cells, unions, texts, boxes and IoUs."""
    ours: dict[str, Any] = {}
    expected: dict[str, Any] = dict(case.outputs)
    for name, given in case.spec["cases"].items():
        cell = given["kwargs"].get("mask_reduce_factor", CELL)
        height, width = given["height"] // cell, given["width"] // cell
        boxes = case.inputs[f"{name}.boxes"].double().numpy() / (np.array([width, height, width, height]) * cell)
        objects = given["kwargs"].get("max_objs", MAX_OBJECTS)
        whole = map_regions(boxes, height, width, legacy=True, max_objects=objects)
        most = given["kwargs"].get("max_regions", MAX_REGIONS)
        cut = map_regions(boxes, height, width, legacy=True, max_objects=objects, max_regions=most)
        owned = [boxes[list(region.members)] if region.members else np.full((1, 4), -1.0) for region in cut.regions]
        arrays: dict[str, Any] = {
            "region_masks": whole.covers,
            "unique_regions": [[n in r.members for n in range(len(whole.covers))] for r in whole.regions],
            "region_index": whole.cells,
            "reorg_masks": _one_hot(cut),
            "reorg_union_masks": unions(cut),
            "reorg_counts": [max(len(region.members), 1) for region in cut.regions],
            "reorg_bboxes": np.concatenate(owned),
            "reorg_ious": np.concatenate([region.ious or (1.0,) for region in cut.regions]),
        }
        ours |= {f"{name}.{key}": torch.as_tensor(np.asarray(array)) for key, array in arrays.items()}
        ours[f"{name}.count"], expected[f"{name}.count"] = len(whole.regions), given["num_regions_before_max_regions"]
        ours[f"{name}.labels"] = region_texts(cut.regions, given["labels"], legacy=True)
        expected[f"{name}.labels"] = given["reorg_labels"]
    return Comparison(ours, expected)


def grounding_inputs(case: Case) -> Comparison:
    """Upstream's six dense tensors from our map and tokens; row 0 is without a layout."""
    spec, given = case.spec, case.inputs
    height, width, slots = spec["height"] // CELL, spec["width"] // CELL, spec["max_objs"]
    boxes = given["boxes"].double().numpy() / np.array([spec["width"], spec["height"]] * 2)
    found = map_regions(boxes, height, width, legacy=True, max_objects=slots)
    texts = stub_texts(case.weights, [given[name].long() for name in ("input_ids", "input_ids_2") if name in given])
    tokens = condition(
        found.regions,
        boxes,
        texts,
        separator=spec["sep"],
        end=spec["eos"],
        iou_weight=spec["attention_weight_scale"],
    )
    length, dim = texts.states.shape[1:]
    dense: dict[str, np.ndarray] = {
        "reorg_masks": np.zeros((2, slots, height, width)),
        "reorg_union_masks": np.zeros((2, slots, height, width)),
        "bbox_embeddings": np.full((2, slots, length, 4), -1.0),
        "object_masks": np.zeros((2, slots)),
        "text_embeddings": np.zeros((2, slots, length, dim)),
        "cross_attention_mask": np.zeros((2, slots, length)),
    }
    used = len(found.regions)
    dense["reorg_union_masks"][0, 0] = 1
    dense["reorg_masks"][1, :used] = _one_hot(found)
    dense["reorg_union_masks"][1, :used] = unions(found)
    dense["object_masks"][1, :used] = 1
    dense["text_embeddings"][1, :used] = texts.states
    dense["cross_attention_mask"][1, :used] = -1e3
    for row, region in enumerate(found.regions):
        own = tokens.region == row
        where = spans(texts.ids[row], len(region.members), separator=spec["sep"], end=spec["eos"])
        positions = [position for first, last in where for position in range(first, last)]
        if not np.array_equal(tokens.text[own], texts.states[row, positions or slice(None)]):
            raise AssertionError(f"region {row}: its tokens are not the states that its spans stand on")
        if positions:
            dense["bbox_embeddings"][1, row, positions] = tokens.boxes[own]
            dense["cross_attention_mask"][1, row, positions] = tokens.bias[own]
    ours: dict[str, Any] = {name: torch.from_numpy(array) for name, array in dense.items()}
    ours["labels"] = region_texts(found.regions, spec["labels"], legacy=True)
    return Comparison(ours, {**case.outputs, "labels": spec["reorg_labels"]})


def stub_texts(weights: dict[str, Tensor], ids: list[Tensor]) -> EncodedTexts:
    """What the cases' stub encoders make of the tokenizers' ids: a table's row plus a position's."""
    names = ["text", "text2"][: len(ids)]
    tables = [weights[f"{name}.table"][each] + weights[f"{name}.pos"] for name, each in zip(names, ids, strict=True)]
    return EncodedTexts(ids[0].numpy(), torch.cat(tables, dim=-1).numpy())


def position_net(case: Case) -> dict[str, Tensor]:
    """Tokens with and without boxes, and the boxes' Fourier features."""
    given, spec = case.inputs, case.spec
    text, boxes = (given[name].flatten(1, 2) for name in ("text_embeddings", "bbox_embeddings"))
    slots, length = given["text_embeddings"].shape[1:3]
    region = torch.where(given["object_masks"] > 0, torch.arange(slots), -1).repeat_interleave(length, dim=1)
    cells = torch.zeros(len(text), 2, 2)
    result = {"fourier": fourier_embedding(given["bbox_embeddings"], 8)}
    first = {name.removeprefix("v1."): tensor for name, tensor in case.weights.items() if name.startswith("v1.")}
    second = {name: tensor for name, tensor in case.weights.items() if not name.startswith("v1.")}
    for name, weights, boxed in (("text_feat", second, True), ("v1.text_feat", first, False)):
        hidden = len(weights["linears.0.bias"])
        net = RegionTextNet(spec["text_feat_dim"], spec["out_dim"], hidden=hidden, boxed=boxed)
        net.load_state_dict(weights)
        tokens = net(text, boxes, torch.zeros(text.shape[:2]), region, cells).tokens
        result[name] = tokens.unflatten(1, (slots, length))
    return result


def fuser(kind: type[RegionalCrossAttention] | type[InstDiffSelfAttention]) -> Callable[[Case], dict[str, Tensor]]:
    """A kind that runs one fuser, its masks kept and made anew."""

    def run(case: Case) -> dict[str, Tensor]:
        spec, given = case.spec, case.inputs
        layer = kind(spec["query_dim"], spec["context_dim"], spec["n_heads"], spec["d_head"])
        layer.load_state_dict(case.weights)
        text = given["text_feat"]
        bias = given.get("cross_attention_mask", torch.zeros(text.shape[:3]))
        boxes = torch.full((*text.shape[:3], 4), -1.0)
        masks, fields = given["reorg_masks"], given["reorg_union_masks"]
        kept = _grounding(compact(masks, boxes, bias, text, reorg_union_masks=fields))
        result = {"y": layer(given["x"], kept)}
        if not torch.equal(layer(given["x"], kept._replace(masks=None)), result["y"]):
            raise AssertionError("masks made anew give another output")
        if "y_no_regions" in case.outputs:
            none = _grounding(compact(masks * 0, boxes, bias * 0, text, reorg_union_masks=fields))
            result["y_no_regions"] = layer(given["x"], none)
        return result

    return run


def unet(kind: FuserKind) -> Callable[[Case], dict[str, Tensor]]:
    """A kind that runs a whole stock UNet with our layers: outputs, loss, gradients of the trained part."""

    def run(case: Case) -> dict[str, Tensor]:
        own = ("attention_type", "position_net_cls", "fuser_cls")
        config = {name: value for name, value in case.spec["unet_config"].items() if name not in own}
        hidden = len(case.weights["position_net.linears.0.bias"])
        model = attach_regional(UNet2DConditionModel(**config), kind, hidden=hidden, keep_small=False)
        model.load_state_dict(case.weights)
        freeze_base(model)
        given = case.inputs
        conditions = {name: given[name] for name in ("text_embeds", "time_ids") if name in given}

        def call(gligen: dict[str, Any] | None) -> Tensor:
            output: Tensor = model(
                given["sample"],
                given["timestep"],
                given["encoder_hidden_states"],
                added_cond_kwargs=conditions or None,
                cross_attention_kwargs={"gligen": gligen} if gligen else None,
            ).sample
            return output

        arguments = compact(*(given[name] for name in DENSE))
        sample = call(arguments)
        loss = nn.functional.mse_loss(sample, given["target"])
        loss.backward()
        grads = {name: p.grad for name, p in adapter_parameters(model).items() if p.grad is not None}
        if sorted(grads) != sorted(case.spec["grad_keys"]):
            raise AssertionError(f"gradients of {sorted(set(grads) ^ set(case.spec['grad_keys']))} on one side alone")
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        if (trained, total) != (case.spec["trainable_params"], case.spec["total_params"]):
            raise AssertionError(f"{trained} trainable parameters of {total}")
        if not torch.equal(call({"objs": model.position_net(**arguments)}), sample):
            raise AssertionError("a grounding made before gives another output")
        return {
            "sample": sample,
            "sample_without_gligen": call(None),
            "loss": loss,
            "grad_norm_all": torch.stack([grad.norm() for grad in grads.values()]).norm(),
            **{f"grad.{name}": grad for name, grad in grads.items()},
        }

    return run


def trainable_keys(base: str) -> Callable[[Case], Comparison]:
    """A kind that compares names and shapes of the trained part at full size, on the meta device."""

    def run(case: Case) -> Comparison:
        with torch.device("meta"):
            model = attach_regional(UNet2DConditionModel(**full_config(base)), case.path.stem.rpartition("_")[2])
        ours = {name: list(parameter.shape) for name, parameter in adapter_parameters(model).items()}
        return Comparison({"keys": sorted(ours), **ours}, {"keys": sorted(case.spec), **case.spec})

    return run


def full_config(base: str) -> dict[str, Any]:
    """The configuration of SDXL's or SD 1.x's UNet, which GLIGEN's cases hold (1.4 and 1.5 are one architecture)."""
    spec = json.loads((_BASES / {"sdxl": "keys_sdxl.json", "sd15": "keys_sd14.json"}[base]).read_text())
    return {name: value for name, value in spec["config"].items() if name != "attention_type"}


def _one_hot(found: RegionMap) -> np.ndarray:
    return found.cells[None] == np.arange(len(found.regions))[:, None, None]


def _grounding(given: dict[str, Tensor]) -> Grounding:
    return Grounding(given["text"], given["bias"], given["region"], given["cells"], given["unions"], {})


KINDS: dict[str, Callable[[Case], dict[str, Tensor] | Comparison]] = {
    "region_map": region_map,
    "grounding_inputs": grounding_inputs,
    "position_net": position_net,
    "regional_ca": fuser(RegionalCrossAttention),
    "regional_casa": fuser(RegionalCrossAndSelfAttention),
    "instdiff_sa": fuser(InstDiffSelfAttention),
    "unet_sdxl": unet("ca"),
    "unet_sd15_casa": unet("casa"),
    "trainable_keys_sdxl": trainable_keys("sdxl"),
    "trainable_keys_sd15": trainable_keys("sd15"),
}
