"""Runs our sampling pipelines on the golden cases of ``gligen/``: the final latents of whole runs."""

import re
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from torch import Tensor

from atelier.models.grounded_unet import attach
from atelier.sampling.gligen_sd import StableDiffusionGLIGENPipeline
from atelier.sampling.gligen_sdxl import StableDiffusionXLGLIGENPipeline
from tests.parity.case import Case

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "euler": EulerDiscreteScheduler,
    "pndm": PNDMScheduler,
}
COMMON = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "steps_offset", "prediction_type")


def _unet(case: Case) -> UNet2DConditionModel:
    """The UNet of the neighbouring case that the JSON names."""
    spec = Case(case.path.with_name(case.spec["unet_config"].split()[0])).spec
    weights = Case(case.path.with_name(case.spec["unet_weights"].split()[0]).with_suffix(".json")).weights
    config = {name: value for name, value in spec["config"].items() if name != "attention_type"}
    model = attach(UNet2DConditionModel(**config), hidden=weights["position_net.linears.0.bias"].shape[0])
    model.load_state_dict(weights)
    return model.eval()


def _scheduler(spec: dict[str, Any], name: str) -> tuple[Any, float]:
    """The scheduler and eta from a sentence such as ``clip_sample False, set_alpha_to_one False, eta 0``."""
    said = dict(re.findall(r"(\w+) (True|False|[\d.]+)", str(spec.get(name, ""))))
    eta = float(said.pop("eta", 0))
    own = {key: value == "True" if value in ("True", "False") else float(value) for key, value in said.items()}
    common = {key: spec[key] for key in COMMON if key in spec}
    return SCHEDULERS[name](**common, **own), eta


def _run(case: Case, pipeline: Any, conditions: dict[str, Any]) -> dict[str, Tensor]:
    spec, given = case.spec, case.inputs
    pipeline.set_progress_bar_config(disable=True)
    embeddings = {name: given[name] for name in given if name.endswith("prompt_embeds")}
    height, width = (int(size) * pipeline.vae_scale_factor for size in given["latents"].shape[-2:])
    result: dict[str, Tensor] = {}
    for name in dict.fromkeys(output.split(".")[0] for output in case.outputs):
        pipeline.scheduler, eta = _scheduler(spec["scheduler"], name)
        for beta in spec["betas"]:
            seen: list[float] = []

            def note(
                _: Any, __: int, timestep: Tensor, ___: dict[str, Tensor], seen: list[float] = seen
            ) -> dict[str, Any]:
                seen.append(float(timestep))
                return {}

            result[f"{name}.beta{beta}"] = pipeline(
                **embeddings,
                **conditions,
                height=height,
                width=width,
                num_inference_steps=spec["num_inference_steps"],
                guidance_scale=spec["guidance_scale"],
                num_images_per_prompt=spec["num_images_per_prompt"],
                eta=eta,
                latents=given["latents"].clone(),
                gligen_boxes=given["boxes"],
                gligen_phrase_embeds=given["phrase_embeddings"],
                gligen_scheduled_sampling_beta=beta,
                gligen_max_boxes=spec["max_objs"],
                output_type="latent",
                callback_on_step_end=note,
            ).images
            result[f"{name}.timesteps"] = torch.tensor(seen)
    return result


def pipe_sd1(case: Case) -> dict[str, Tensor]:
    """Stable Diffusion: every scheduler and beta of the case."""
    pipeline = StableDiffusionGLIGENPipeline(
        None, None, None, _unet(case), _scheduler(case.spec["scheduler"], "ddim")[0]
    )
    return _run(case, pipeline, {})


def pipe_sdxl(case: Case) -> dict[str, Tensor]:
    """SDXL: the same with its size conditions."""
    pipeline = StableDiffusionXLGLIGENPipeline(
        None, None, None, None, None, _unet(case), _scheduler(case.spec["scheduler"], "ddim")[0]
    )
    sizes = {name: tuple(value) for name, value in (case.spec["sdxl"] or {}).items()}
    return _run(case, pipeline, sizes)


KINDS: dict[str, Callable[[Case], dict[str, Tensor]]] = {"pipe_sd1": pipe_sd1, "pipe_sdxl": pipe_sdxl}
