"""Descriptions as regional attention reads them: every token's last state, of one text encoder or two side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atelier.errors import ConfigError
from atelier.models.regional.reading import Reader
from atelier.models.regional.tokens import EncodedTexts
from atelier.sampling.layout_pipeline import TOKENIZING

SEPARATOR = ";</w>"
"""CLIP's token between a region's descriptions."""


def _float32(states: Tensor) -> np.ndarray:
    return states.float().cpu().numpy()


def region_reader(
    tokenizers: Sequence[Any], encoders: Sequence[Any], as_array: Callable[[Tensor], np.ndarray] = _float32
) -> Reader:
    """How these encoders read regions; the first tokenizer says where a description begins and ends.

    Args:
        tokenizers, encoders: SDXL's two, SD's one.
        as_array: states as an array, of the type that is wanted.

    Raises:
        ConfigError: a tokenizer or an encoder is missing.
    """
    if any(part is None for part in (*tokenizers, *encoders)):
        raise ConfigError("there is no text encoder for descriptions", "open the whole pipeline's folder")
    first = tokenizers[0]

    def encode(texts: Sequence[str]) -> EncodedTexts:
        ids, states = region_states(tokenizers, encoders, texts)
        return EncodedTexts(ids, as_array(states))

    def fits(text: str) -> bool:
        longest: int = first.model_max_length
        with TOKENIZING:  # one more than it may have is enough to know
            return len(first(text, truncation=True, max_length=longest + 1).input_ids) <= longest

    return Reader(encode, fits, first.convert_tokens_to_ids(SEPARATOR), first.eos_token_id)


@torch.no_grad()
def region_states(
    tokenizers: Sequence[Any], encoders: Sequence[Any], texts: Sequence[str]
) -> tuple[np.ndarray, Tensor]:
    """Token ids of the first tokenizer int64 [N, T], and the encoders' last states side by side [N, T, D].

    After their final norm, and padding does not see padding: as the published training has it (facts, section 1.2), not
    as SDXL reads a prompt.
    """
    states: list[Tensor] = []
    ids = np.zeros((0, 0), np.int64)
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        with TOKENIZING:
            read = tokenizer(
                list(texts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
        device = encoder.device
        made = encoder(read.input_ids.to(device), attention_mask=read.attention_mask.to(device))
        states.append(made.last_hidden_state)
        if not ids.size:
            ids = read.input_ids.numpy()
    return ids, torch.cat([each.to(states[0]) for each in states], dim=-1)
