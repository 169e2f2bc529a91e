"""CrossFlow's sampling pipeline: prompts to pictures, between prompts, and sums of prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from atelier.errors import ConfigError
from atelier.models.crossflow.model import CrossFlow
from atelier.sampling.crossflow_text import as_trained, encode, open_language_model
from atelier.sampling.flow_solvers import Step, solve
from atelier.sampling.guided_flow import GuidedFlow
from atelier.sampling.latent_arithmetic import combine, interpolate

Generators = torch.Generator | list[torch.Generator] | None


class CrossFlowPipeline(DiffusionPipeline):
    """Text to image by a flow that starts from the text.

    Args:
        vae: its ``scaling_factor`` is that of the latents.
        text_encoder, tokenizer: CLIP's or T5's; None where only latents are given.
        context_encoder: a ``CrossFlowTextEncoder``.
        flow: a ``CrossFlowDiT`` or ``CrossFlowDiMR``.
    """

    model_cpu_offload_seq = "text_encoder->context_encoder->flow->vae"
    _optional_components = ("text_encoder", "tokenizer")

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, context_encoder: Any, flow: Any) -> None:
        super().__init__()
        started, ended = tuple(context_encoder.config.latent_shape), tuple(flow.latent_shape)
        if started != ended:
            raise ConfigError(
                f"the text encoder's latents are {list(started)}, the flow network's {list(ended)}: "
                "they are of two CrossFlows",
                "take both parts of one model",
            )
        self.register_modules(
            vae=vae,
            text_encoder=as_trained(text_encoder),
            tokenizer=tokenizer,
            context_encoder=context_encoder,
            flow=flow,
        )
        self.image_processor = VaeImageProcessor()

    @classmethod
    def around(cls, base: Path, model: CrossFlow, latent_scale: float | None = None) -> "CrossFlowPipeline":
        """A pipeline of a model in memory, with the autoencoder and language model of a base folder.

        Args:
            latent_scale: of the latents that the model knows; None: the autoencoder's own.
        """
        tokenizer, encoder = open_language_model(base)
        vae = AutoencoderKL.from_pretrained(base / "vae").eval().requires_grad_(False)
        if latent_scale is not None:
            vae.register_to_config(scaling_factor=latent_scale)
        pipeline = cls(vae, encoder, tokenizer, model.context_encoder, model.flow)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def text_latents(self, prompt: str | Sequence[str], generator: Generators = None) -> Tensor:
        """What the flow starts from: a draw of each prompt's posterior, float32 [B, C, H, W].

        Args:
            generator: one for all, or one a prompt, so that each picture has a seed of its own.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ConfigError("there is no prompt", "give at least one")
        found = encode(self.tokenizer, self.text_encoder, prompts, self.context_encoder.config.tokens)
        width = self.context_encoder.config.width
        if found.states.shape[-1] != width:
            raise ConfigError(
                f"the language model's states are {found.states.shape[-1]} wide, this CrossFlow reads {width}",
                "use the language model that it was trained with",
            )
        device = self._execution_device
        states = found.states.to(device, self.context_encoder.dtype)
        posterior = self.context_encoder(states, found.mask.to(device))
        noise = randn_tensor(posterior.mean.shape, generator=generator, device=device, dtype=torch.float32)
        latents: Tensor = posterior.sample(noise).unflatten(1, self.flow.latent_shape)
        return latents

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 25,
        guidance_scale: float = 7.0,
        num_images_per_prompt: int = 1,
        solver: str = "ab2",
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], Any] | None = None,
        decode_batch: int = 8,
    ) -> Any:
        """Draws pictures.

        Args:
            prompt: one or several.
            num_inference_steps: of the solver; 50 with ``euler_released`` is upstream's default.
            guidance_scale: see ``GuidedFlow``; 1 and below are allowed.
            num_images_per_prompt: draws of each prompt's latent.
            solver: see ``flow_solvers.SOLVERS``; ``euler_released`` steps as upstream does.
            generator: one for all, or one a picture.
            latents: text latents [B, C, H, W] in the place of prompts, see ``text_latents``.
            output_type: "pil", "np", "pt", or "latent" for the latents before decoding.
            callback_on_step_end: called with (pipeline, step, time, {"latents": …}).
            decode_batch: pictures decoded at once.

        Returns:
            ``ImagePipelineOutput``, or a tuple of its images.

        Raises:
            ConfigError: neither or both of prompt and latents, an unknown solver, no step, a guidance that is none.
        """
        if (prompt is None) == (latents is None):
            raise ConfigError("give prompts or latents, and not both", "leave one of them out")
        if latents is None:
            prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
            repeated = [text for text in prompts for _ in range(num_images_per_prompt)]
            latents = self.text_latents(repeated, generator)
        velocity = GuidedFlow(self.flow, guidance_scale, self.flow.dtype)
        with self.progress_bar(total=num_inference_steps) as bar:

            def observe(step: Step) -> None:
                bar.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(self, step.number, step.time, {"latents": step.x})

            start = latents.to(self._execution_device, torch.float32)
            x = solve(velocity, start, num_inference_steps, solver, observe)
        images = x if output_type == "latent" else self._decoded(x, output_type, decode_batch)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _decoded(self, x: Tensor, output_type: str, batch: int) -> Any:
        x = (x / self.vae.config.scaling_factor).to(self.vae.dtype)
        pictures = torch.cat([self.vae.decode(part).sample for part in x.split(batch)])
        return self.image_processor.postprocess(pictures.float(), output_type=output_type)

    def interpolate(
        self, first: str, last: str, count: int, generator: torch.Generator | None = None, **settings: Any
    ) -> Any:
        """Pictures along the line between two prompts' latents, ends included.

        Args:
            settings: of ``__call__``; ``decode_batch`` pictures are drawn at once too.
        """
        ends = self.text_latents([first, last], generator)
        return self._series(interpolate(ends[0], ends[1], count), **settings)

    def _series(self, latents: Tensor, decode_batch: int = 8, **settings: Any) -> Any:
        """As ``__call__``, ``decode_batch`` latents at a time: a long strip needs no more memory than a short one."""
        parts = [self(latents=part, **settings | {"return_dict": False})[0] for part in latents.split(decode_batch)]
        if isinstance(parts[0], list):
            images: Any = [image for part in parts for image in part]
        else:
            images = torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)
        return ImagePipelineOutput(images=images) if settings.get("return_dict", True) else (images,)

    def arithmetic(
        self,
        prompt: str,
        added: Sequence[str] = (),
        removed: Sequence[str] = (),
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> Any:
        """Pictures of every prompt given, and last of their sum: prompt + added − removed.

        Args:
            settings: of ``__call__``; ``decode_batch`` pictures are drawn at once too.
        """
        if not added and not removed:
            raise ConfigError("there is nothing to add or to remove", "give a second prompt")
        latents = self.text_latents([prompt, *added, *removed], generator)
        more, less = latents[1 : 1 + len(added)], latents[1 + len(added) :]
        total = combine(latents[0], list(more), list(less))
        return self._series(torch.cat([latents, total[None]]), **settings)
