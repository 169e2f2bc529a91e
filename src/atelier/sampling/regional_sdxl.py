"""Layout-to-image sampling with an SDXL UNet that carries Rich-context's regional layers (arXiv 2409.04847)."""

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from atelier.sampling.regional_pipeline import RegionalMixin


class StableDiffusionXLRegionalPipeline(RegionalMixin, StableDiffusionXLPipeline):
    """SDXL's own pipeline with boxes and a description of each, as long as a sentence."""

    _stock = StableDiffusionXLPipeline
    #: Set on a run's own copy, for each prompt: whether, if empty, it is what a dropped caption was in training.
    _as_dropped: tuple[bool, ...] = ()

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        prompt_2: str | list[str] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As the stock pipeline; with boxes an empty prompt is zeros, its pooled text too, not the states of "".

        Empty is one of which neither encoder is told a word.
        """
        encoded = super().encode_prompt(prompt, prompt_2, *args, **kwargs)
        if prompt is None or not any(self._as_dropped):
            return encoded
        states, negative, pooled, negative_pooled = encoded
        both = [[text] if isinstance(text, str) else text for text in (prompt, prompt_2 or prompt)]
        given = zip(*both, self._as_dropped, strict=True)
        told = torch.tensor([bool((one + other).strip()) or not dropped for one, other, dropped in given])
        told = told.repeat_interleave(len(states) // len(told)).to(states.device)[:, None]
        return states * told[..., None], negative, pooled * told, negative_pooled

    def _text_parts(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return (self.tokenizer, self.tokenizer_2), (self.text_encoder, self.text_encoder_2)
