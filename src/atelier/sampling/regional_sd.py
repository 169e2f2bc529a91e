"""Layout-to-image sampling with a Stable Diffusion 1.x UNet that carries Rich-context's regional layers."""

from typing import Any

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from atelier.sampling.regional_pipeline import RegionalMixin


class StableDiffusionRegionalPipeline(RegionalMixin, StableDiffusionPipeline):
    """Stable Diffusion's own pipeline with boxes and a description of each, as long as a sentence."""

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
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )

    def _text_parts(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return (self.tokenizer,), (self.text_encoder,)
