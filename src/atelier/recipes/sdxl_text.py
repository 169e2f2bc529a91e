"""Text as SDXL reads it: two CLIP encoders, next-to-last states side by side, the second's projection pooled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


@dataclass(frozen=True)
class SDXLText:
    """The two tokenizers and encoders of an SDXL folder."""

    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection]
    parts: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")

    @classmethod
    def load(cls, base: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> "SDXLText":
        """Opens tokenizer, tokenizer_2, text_encoder and text_encoder_2 of a diffusers folder."""
        first = CLIPTextModel.from_pretrained(base / "text_encoder", torch_dtype=dtype)
        second = CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2", torch_dtype=dtype)
        return cls(
            (CLIPTokenizer.from_pretrained(base / "tokenizer"), CLIPTokenizer.from_pretrained(base / "tokenizer_2")),
            (first.to(device).eval().requires_grad_(False), second.to(device).eval().requires_grad_(False)),
        )

    @property
    def device(self) -> torch.device:
        """Where the encoders are."""
        return self.encoders[0].device

    def _ids(self, tokenizer: CLIPTokenizer, texts: Sequence[str], padding: str = "max_length") -> Tensor:
        return tokenizer(
            list(texts),
            padding=padding,
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompt embeddings [B, T, W1 + W2] and pooled embeddings [B, P]."""
        first, second = (
            encoder(self._ids(tokenizer, texts), output_hidden_states=True)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        )
        return torch.cat((first.hidden_states[-2], second.hidden_states[-2]), dim=-1), second.text_embeds

    def captions(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What the UNet is told of B captions, by the names of a sample: ``prompt`` and ``pooled``."""
        prompt, pooled = self.prompts(texts)
        return {"prompt": prompt, "pooled": pooled}

    @torch.no_grad()
    def phrases(self, texts: Sequence[str]) -> Tensor:
        """Phrase embeddings [B, W1 + P]: the first's end-of-text state beside the second's projected one."""
        # The encoders are causal: what follows a phrase's end does not reach it, so that 77 tokens are not needed.
        first = self.encoders[0](self._ids(self.tokenizers[0], texts, "longest")).pooler_output
        second = self.encoders[1](self._ids(self.tokenizers[1], texts, "longest")).text_embeds
        return torch.cat((first, second), dim=-1)
