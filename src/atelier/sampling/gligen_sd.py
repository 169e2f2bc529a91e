"""Layout-to-image sampling with a Stable Diffusion 1.x or 2.x UNet that carries GLIGEN's layers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from atelier.models.grounded_unet import adopt
from atelier.sampling.gligen_pipeline import GLIGENMixin, pooled_states
from atelier.sampling.layout_input import Boxes


class StableDiffusionGLIGENPipeline(GLIGENMixin, StableDiffusionPipeline):
    """Stable Diffusion's own pipeline with boxes and phrases (GLIGEN, arXiv 2301.07093).

    The arguments are those of diffusers' deprecated pipeline of this name. Unlike that one it takes a layout a
    prompt, works without boxes, needs no square, draws nothing from the global random state and leaves the fusers
    as they were.
    """

    _stock = StableDiffusionPipeline

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = False,
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

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        gligen_scheduled_sampling_beta: float = 0.3,
        gligen_phrases: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        gligen_boxes: Boxes | Sequence[Boxes | None] | Tensor | None = None,
        gligen_inpaint_image: Any = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int | None = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str | None = "pil",
        return_dict: bool = True,
        callback: Callable[[int, int, Tensor], None] | None = None,
        callback_steps: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        *,
        gligen_decay: float = 0.0,
        gligen_phrase_embeds: Tensor | Sequence[Tensor | None] | None = None,
        gligen_max_boxes: int = 30,
        **others: Any,
    ) -> Any:
        """As diffusers' GLIGEN pipeline; what ``StableDiffusionPipeline`` takes besides goes through ``others``.

        Args:
            gligen_scheduled_sampling_beta: the share of the steps, from the first, that are grounded.
            gligen_phrases: a phrase a box: one list for every prompt, or a list a prompt; a phrase may be empty.
            gligen_boxes: normalised xyxy, one list for every prompt, or a list a prompt. None: no grounding.
            gligen_inpaint_image: a PIL image, or one a prompt: kept outside the boxes. Its centre is cut to the
                aspect asked for; boxes refer to that.
            gligen_decay: the share of the steps after those over which grounding falls to nothing.
            gligen_phrase_embeds: [N, width], or one a prompt, in the place of phrases.
            gligen_max_boxes: the number of slots that the model was trained with.

        Raises:
            ConfigError: boxes, phrases or shares that cannot be; names which.
        """
        arguments = {
            "prompt": prompt,
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "num_images_per_prompt": num_images_per_prompt,
            "eta": eta,
            "generator": generator,
            "latents": latents,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "output_type": output_type,
            "return_dict": return_dict,
            "cross_attention_kwargs": cross_attention_kwargs,
            "clip_skip": clip_skip,
            **others,
        }
        if callback is not None:  # deprecated in the stock pipeline, which says so
            arguments |= {"callback": callback, "callback_steps": callback_steps}
        return self._grounded_call(
            arguments,
            boxes=gligen_boxes,
            phrases=gligen_phrases,
            embeddings=gligen_phrase_embeds,
            beta=gligen_scheduled_sampling_beta,
            decay=gligen_decay,
            max_boxes=gligen_max_boxes,
            inpaint_image=gligen_inpaint_image,
        )

    def _embed_phrases(self, phrases: list[str]) -> Tensor:
        """[N, W]: the text encoder's pooler output."""
        return pooled_states(self.tokenizer, self.text_encoder, phrases, "pooler_output")
