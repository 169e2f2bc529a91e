"""Layout-to-image sampling with an SDXL UNet that carries GLIGEN's layers."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from atelier.errors import ConfigError
from atelier.models.grounded_unet import adopt
from atelier.sampling.gligen_pipeline import GLIGENMixin, pooled_states
from atelier.sampling.layout_input import Boxes


class StableDiffusionXLGLIGENPipeline(GLIGENMixin, StableDiffusionXLPipeline):
    """SDXL's own pipeline with boxes and phrases (GLIGEN, arXiv 2301.07093; SDXL form as IGLIGEN-XL).

    Its arguments are the stock pipeline's, in its order, and GLIGEN's by name.
    """

    _stock = StableDiffusionXLPipeline

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        # diffusers reads a pipeline's parts off this signature, types included.
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=adopt(unet),
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=add_watermarker,
        )

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        *args: Any,
        gligen_phrases: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        gligen_boxes: Boxes | Sequence[Boxes | None] | Tensor | None = None,
        gligen_scheduled_sampling_beta: float = 0.3,
        gligen_decay: float = 0.0,
        gligen_phrase_embeds: Tensor | Sequence[Tensor | None] | None = None,
        gligen_max_boxes: int = 32,
        gligen_inpaint_image: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As ``StableDiffusionXLPipeline``, with GLIGEN's arguments.

        Args:
            gligen_phrases: a phrase a box: one list for every prompt, or a list a prompt; a phrase may be empty.
            gligen_boxes: normalised xyxy, one list for every prompt, or a list a prompt. None: no grounding.
            gligen_scheduled_sampling_beta: the share of the steps, from the first, that are grounded.
            gligen_decay: the share of the steps after those over which grounding falls to nothing.
            gligen_phrase_embeds: [N, width], or one a prompt, in the place of phrases.
            gligen_max_boxes: the number of slots that the model was trained with.
            gligen_inpaint_image: refused: no SDXL model of GLIGEN inpaints.

        Raises:
            ConfigError: boxes, phrases or shares that cannot be; names which.
        """
        if gligen_inpaint_image is not None:
            raise ConfigError(
                "gligen_inpaint_image is given to an SDXL pipeline", "inpaint with an SD 1.x or 2.x model"
            )
        given = inspect.signature(StableDiffusionXLPipeline.__call__).bind_partial(self, prompt, *args, **kwargs)
        named = {name: value for name, value in given.arguments.items() if name not in ("self", "kwargs")}
        return self._grounded_call(
            {**named, **given.arguments.get("kwargs", {})},
            boxes=gligen_boxes,
            phrases=gligen_phrases,
            embeddings=gligen_phrase_embeds,
            beta=gligen_scheduled_sampling_beta,
            decay=gligen_decay,
            max_boxes=gligen_max_boxes,
        )

    def _embed_phrases(self, phrases: list[str]) -> Tensor:
        """[N, W1 + P]: the pooler output of encoder 1 beside the projected one of encoder 2."""
        first = pooled_states(self.tokenizer, self.text_encoder, phrases, "pooler_output")
        second = pooled_states(self.tokenizer_2, self.text_encoder_2, phrases, "text_embeds")
        return torch.cat((first, second.to(first)), dim=-1)
