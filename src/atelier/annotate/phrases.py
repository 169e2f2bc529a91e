"""Embeddings of phrases: CLIP's end-of-text state before its projection, as GLIGEN is trained on them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from atelier.annotate.loading import device, load, load_model
from atelier.annotate.places import Place
from atelier.recipes.sd_text import SDText

AT_ONCE = 256


class PhraseEncoder:
    """Phrases to float16 rows; each different phrase is encoded once a call.

    Args:
        place: a CLIP, a CLIP text encoder, or a diffusers folder, whose ``text_encoder`` is taken.
    """

    def __init__(self, place: Place) -> None:
        if (Path(place.name) / "model_index.json").is_file():
            self._text = SDText.load(Path(place.name), device=str(device()))
        else:
            from transformers import CLIPTextModel, CLIPTokenizer

            self._text = SDText(load(CLIPTokenizer, place), load_model(CLIPTextModel, place))
        self.width = int(self._text.encoder.config.hidden_size)

    def embed(self, phrases: Sequence[str]) -> np.ndarray:
        """float16 [n, D]."""
        unique = list(dict.fromkeys(phrases))
        rows = [np.empty((0, self.width), np.float16)]
        for begin in range(0, len(unique), AT_ONCE):
            rows.append(self._text.phrases(unique[begin : begin + AT_ONCE]).cpu().numpy().astype(np.float16))
        known = {phrase: row for row, phrase in enumerate(unique)}
        return np.concatenate(rows)[[known[phrase] for phrase in phrases]]
