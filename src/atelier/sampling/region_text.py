"""Descriptions as regional attention reads them: every token's last state, of one text encoder or two side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atelier.errors import ConfigError
from atelier.sampling.layout_pipeline import TOKENIZING

SEPARATOR = ";</w>"
"""CLIP's token between a region's descriptions."""


@torch.no_grad()
def region_states(
    tokenizers: Sequence[Any], encoders: Sequence[Any], texts: Sequence[str]
) -> tuple[np.ndarray, Tensor]:
    """Token ids of the first tokenizer int64 [N, T], and the encoders' last states side by side [N, T, D].

    After their final norm, and padding does not see padding: as the published training has it (facts, section 1.2), not
    as SDXL reads a prompt.

    Raises:
        ConfigError: a tokenizer or an encoder is missing.
    """
    states: list[Tensor] = []
    ids = np.zeros((0, 0), np.int64)
    for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
        if tokenizer is None or encoder is None:
            raise ConfigError("there is no text encoder for descriptions", "open the whole pipeline's folder")
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
