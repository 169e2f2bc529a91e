"""Layout-to-image sampling with an SDXL UNet that carries Rich-context's regional layers (arXiv 2409.04847)."""

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from atelier.sampling.regional_pipeline import RegionalMixin


class StableDiffusionXLRegionalPipeline(RegionalMixin, StableDiffusionXLPipeline):
    """SDXL's own pipeline with boxes and a description of each, as long as a sentence."""

    _stock = StableDiffusionXLPipeline
    #: Set on a run's own copy: an empty prompt is what a dropped caption was in training.
    _as_dropped = False

    def encode_prompt(self, prompt: str | list[str] | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the stock pipeline; with boxes an empty prompt is zeros, its pooled text too, not the states of ""."""
        encoded = super().encode_prompt(prompt, *args, **kwargs)
        if prompt is None or not self._as_dropped:
            return encoded
        states, negative, pooled, negative_pooled = encoded
        told = torch.tensor([bool(text.strip()) for text in ([prompt] if isinstance(prompt, str) else prompt)])
        told = told.repeat_interleave(len(states) // len(told)).to(states.device)[:, None]
        return states * told[..., None], negative, pooled * told, negative_pooled

    def _text_parts(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return (self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2)
