"""Runs our sampling pipeline on the golden case of ``rich_context/``: every step's latents of a guided run."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from atelier.models.regional.reading import Reader
from atelier.models.regional.tokens import EncodedTexts
from atelier.models.regional_unet import attach_regional
from atelier.sampling.regional_sdxl import StableDiffusionXLRegionalPipeline
from tests.parity.case import Case
from tests.parity.rich_context import stub_texts

SEPARATOR, END = 3, 2
"""Of the cases' stub tokenizer, see ``grounding_inputs``."""


def pipeline_sdxl(case: Case) -> dict[str, Tensor]:
    """The pipeline with the case's stub in the place of tokenizers and text encoders."""
    spec, given = case.spec, case.inputs
    weights = {n.removeprefix("unet."): tensor for n, tensor in case.weights.items() if n.startswith("unet.")}
    own = ("attention_type", "position_net_cls", "fuser_cls")
    config = {name: value for name, value in spec["unet_config"].items() if name not in own}
    unet = attach_regional(UNet2DConditionModel(**config), hidden=len(weights["position_net.linears.0.bias"]))
    unet.load_state_dict(weights)
    stub = stub_texts(case.weights, [given["input_ids"].long(), given["input_ids_2"].long()])

    def encode(texts: Sequence[str]) -> EncodedTexts:
        if list(texts) != spec["reorg_labels"]:
            raise AssertionError(f"the regions' texts are {texts}")
        return stub

    class Pipeline(StableDiffusionXLRegionalPipeline):
        def _reader(self) -> Reader:
            return Reader(encode, lambda _: True, SEPARATOR, END)

    pipeline = Pipeline(None, None, None, None, None, unet.eval(), DDIMScheduler(**spec["scheduler"]))
    pipeline.set_progress_bar_config(disable=True)
    result: dict[str, Tensor] = {}
    seen: list[float] = []

    def note(_: Any, step: int, timestep: Tensor, state: dict[str, Tensor]) -> dict[str, Any]:
        seen.append(float(timestep))
        result[f"latents_step{step}"] = state["latents"].clone()
        return {}

    height, width = spec["image_hw"]
    result["latents"] = pipeline(
        **{name: given[name] for name in given if name.endswith("prompt_embeds")},
        boxes=given["boxes"],
        labels=spec["labels"],
        box_unit="px",
        parity=True,
        attention_weight_scale=spec["attention_weight_scale"],
        height=height,
        width=width,
        num_inference_steps=spec["num_inference_steps"],
        guidance_scale=spec["guidance_scale"],
        eta=spec["eta"],
        latents=given["latents"].clone(),
        output_type="latent",
        callback_on_step_end=note,
    ).images
    result["timesteps"] = torch.tensor(seen)
    return result


KINDS: dict[str, Callable[[Case], dict[str, Tensor]]] = {"pipeline_sdxl": pipeline_sdxl}
