"""Layout-to-image sampling with an SDXL UNet that carries Rich-context's regional layers (arXiv 2409.04847)."""

from typing import Any

from diffusers import StableDiffusionXLPipeline

from atelier.sampling.regional_pipeline import RegionalMixin


class StableDiffusionXLRegionalPipeline(RegionalMixin, StableDiffusionXLPipeline):
    """SDXL's own pipeline with boxes and a description of each, as long as a sentence."""

    _stock = StableDiffusionXLPipeline

    def _text_parts(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return (self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2)
