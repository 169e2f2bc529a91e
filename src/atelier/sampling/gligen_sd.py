"""Layout-to-image sampling with an SD 1.x or 2.x UNet that carries GLIGEN's layers."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from atelier.errors import ConfigError
from atelier.models.grounded_unet import adopt
from atelier.sampling.gligen_sdxl import Boxes, StableDiffusionXLGLIGENPipeline


class StableDiffusionGLIGENPipeline(StableDiffusionPipeline):
    """Stable Diffusion's own pipeline with boxes and phrases (GLIGEN, arXiv 2301.07093).

    Built as ``StableDiffusionXLGLIGENPipeline``: nothing of the parent's loop is forked, nothing of the UNet switched.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = True,
    ) -> None:
        # diffusers reads a pipeline's parts off this signature, types included.
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=adopt(unet),
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )

    _step_count = StableDiffusionXLGLIGENPipeline._step_count
    _prompt_count = staticmethod(StableDiffusionXLGLIGENPipeline._prompt_count)
    _per_prompt = staticmethod(StableDiffusionXLGLIGENPipeline._per_prompt)
    _grounding_tokens = StableDiffusionXLGLIGENPipeline._grounding_tokens

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        *args: Any,
        gligen_phrases: Sequence[str] | Sequence[Sequence[str]] | None = None,
        gligen_boxes: Boxes | Sequence[Boxes] | None = None,
        gligen_scheduled_sampling_beta: float = 0.3,
        gligen_max_boxes: int = 30,
        **kwargs: Any,
    ) -> Any:
        """As ``StableDiffusionPipeline``, with the arguments of ``StableDiffusionXLGLIGENPipeline`` besides.

        Raises:
            ConfigError: boxes and phrases of different number, a box outside [0, 1] or without area, too many boxes.
        """
        if not gligen_boxes and not gligen_phrases:
            return super().__call__(prompt, *args, **kwargs)
        prompts = self._prompt_count(prompt, kwargs)
        grounding = self._per_prompt(gligen_boxes, gligen_phrases, prompts, gligen_max_boxes)
        if not 0 <= gligen_scheduled_sampling_beta <= 1:
            raise ConfigError(f"gligen_scheduled_sampling_beta is {gligen_scheduled_sampling_beta}", "use 0 to 1")
        steps = int(gligen_scheduled_sampling_beta * self._step_count(kwargs))
        guided = kwargs.get("guidance_scale", 7.5) > 1 and self.unet.config.time_cond_proj_dim is None
        objs = self._grounding_tokens(grounding, gligen_max_boxes, kwargs.get("num_images_per_prompt") or 1, guided)
        user_callback = kwargs.pop("callback_on_step_end", None)
        shared = kwargs.pop("cross_attention_kwargs", None) or {}

        def after_step(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            if step + 1 == steps:
                pipe._cross_attention_kwargs = shared or None
            return user_callback(pipe, step, timestep, tensors) if user_callback else {}

        grounded = {**shared, "gligen": {"objs": objs}} if steps > 0 else shared
        return super().__call__(
            prompt, *args, cross_attention_kwargs=grounded or None, callback_on_step_end=after_step, **kwargs
        )

    def _encode_phrases(self, phrases: list[str]) -> Tensor:
        """Phrase embeddings [N, W]: the text encoder's end-of-text state."""
        ids = self.tokenizer(
            phrases,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        state: Tensor = self.text_encoder(ids.to(self.text_encoder.device)).pooler_output
        return state
