"""Tags by CLIP or SigLIP: each image against "a photo of a …" of every word of a vocabulary."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atelier.annotate.loading import load, load_model
from atelier.annotate.places import Place

PROMPT = "a photo of a {}"
WORDS_AT_ONCE = 256


class VocabularyTagger:
    """``Tagger``. The words' embeddings are computed once.

    Args:
        place: a CLIP (probability: softmax over the vocabulary) or a SigLIP (sigmoid of each word).
        words: the vocabulary.
        threshold: least probability.
        limit: most tags of an image.
    """

    def __init__(self, place: Place, words: Sequence[str], threshold: float, limit: int) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        self._words, self._threshold, self._limit = list(words), threshold, limit
        self._processor = load(AutoImageProcessor, place)
        self._model = load_model(AutoModel, place)
        self._texts = self._embedded(load(AutoTokenizer, place))

    @torch.inference_mode()
    def _embedded(self, tokenizer: object) -> Tensor:
        prompts = [PROMPT.format(word) for word in self._words]
        # SigLIP was trained on padded texts alone; to CLIP padding behind the end makes no difference.
        length = self._model.config.text_config.max_position_embeddings
        found = []
        for begin in range(0, len(prompts), WORDS_AT_ONCE):
            inputs = tokenizer(  # type: ignore[operator]
                prompts[begin : begin + WORDS_AT_ONCE],
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            ).to(self._model.device)
            found.append(self._model.get_text_features(**inputs).pooler_output)
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """float32 [3, H, W]."""
        return np.asarray(self._processor(images=image, return_tensors="np")["pixel_values"][0])

    @torch.inference_mode()
    def tags(self, prepared: Sequence[np.ndarray]) -> list[list[str]]:
        """The words of at least the threshold, the likeliest first."""
        pixels = torch.from_numpy(np.stack(prepared)).to(self._model.device)
        images = torch.nn.functional.normalize(
            self._model.get_image_features(pixel_values=pixels).pooler_output, dim=-1
        )
        logits = images @ self._texts.T * self._model.logit_scale.exp()
        bias = getattr(self._model, "logit_bias", None)
        chances = logits.softmax(-1) if bias is None else (logits + bias).sigmoid()
        return [self._chosen(row) for row in chances.float().cpu().numpy()]

    def _chosen(self, chances: np.ndarray) -> list[str]:
        best = np.argsort(-chances, kind="stable")[: self._limit]
        return [self._words[place] for place in best.tolist() if chances[place] >= self._threshold]
