"""Text as Stable Diffusion 1.x reads it: one CLIP encoder, its last states; a phrase is its end-of-text state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class SDText:
    """The tokenizer and the encoder of an SD 1.x folder."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")

    @classmethod
    def load(cls, base: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> "SDText":
        """Opens tokenizer and text_encoder of a diffusers folder."""
        encoder = CLIPTextModel.from_pretrained(base / "text_encoder", torch_dtype=dtype)
        return cls(CLIPTokenizer.from_pretrained(base / "tokenizer"), encoder.to(device).eval().requires_grad_(False))

    @property
    def tokenizers(self) -> tuple[CLIPTokenizer, ...]:
        """The one, as ``SDXLText`` has two."""
        return (self.tokenizer,)

    @property
    def encoders(self) -> tuple[CLIPTextModel, ...]:
        """The one."""
        return (self.encoder,)

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.device

    def _ids(self, texts: Sequence[str], padding: str = "max_length") -> Tensor:
        return self.tokenizer(
            list(texts),
            padding=padding,
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(self.device)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Tensor:
        """Prompt embeddings [B, T, W]: the last hidden states after the final LayerNorm."""
        states: Tensor = self.encoder(self._ids(texts)).last_hidden_state
        return states

    def captions(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What the UNet is told of B captions, by the names of a sample: ``prompt``."""
        return {"prompt": self.prompts(texts)}

    @torch.no_grad()
    def phrases(self, texts: Sequence[str]) -> Tensor:
        """Phrase embeddings [B, W]: the end-of-text state, before CLIP's projection."""
        # The encoder is causal: what follows a phrase's end does not reach it, so that 77 tokens are not needed.
        pooled: Tensor = self.encoder(self._ids(texts, "longest")).pooler_output
        return pooled
