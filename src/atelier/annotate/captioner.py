"""Captions of crops by BLIP-2 (arXiv 2301.12597) through transformers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from PIL import Image

from atelier.annotate.loading import half_where_fast, load, load_model
from atelier.annotate.places import Place
from atelier.errors import ConfigError

THREADS = 4


class Captioner:
    """Says in a few words what is in a crop: no prompt, the likeliest token each time.

    Args:
        place: a BLIP-2; float16 on an accelerator, float32 on a CPU.
        tokens: most new tokens.
        batch: crops at once.

    Raises:
        ConfigError: it cannot be loaded, or its configuration is of before transformers 4.46.
    """

    def __init__(self, place: Place, tokens: int, batch: int) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, Blip2ForConditionalGeneration

        self._tokens, self._batch = tokens, batch
        self._processor = load(AutoImageProcessor, place)
        self._tokenizer = load(AutoTokenizer, place)
        self._model = load_model(Blip2ForConditionalGeneration, place, half_where_fast())
        if self._model.config.image_token_index is None:
            raise ConfigError(
                f"{place.name}: its config.json names no image_token_index", "take a newer revision of the model"
            )
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="crop")

    @torch.inference_mode()
    def captions(self, crops: Sequence[Image.Image]) -> list[str]:
        """A caption for each crop; it may be empty."""
        chunks = [crops[begin : begin + self._batch] for begin in range(0, len(crops), self._batch)]
        # Crops of the next chunk are resized while the model writes about this one.
        waiting = [[self._pool.submit(self._pixels, crop) for crop in chunk] for chunk in chunks]
        return list(chain.from_iterable(self._of([job.result() for job in jobs]) for jobs in waiting))

    def _pixels(self, crop: Image.Image) -> np.ndarray:
        return np.asarray(self._processor(images=crop, return_tensors="np")["pixel_values"][0])

    def _of(self, pixels: list[np.ndarray]) -> list[str]:
        values = torch.from_numpy(np.stack(pixels)).to(self._model.device, self._model.dtype)
        written = self._model.generate(pixel_values=values, max_new_tokens=self._tokens, do_sample=False, num_beams=1)
        return [text.strip() for text in self._tokenizer.batch_decode(written, skip_special_tokens=True)]


def crop(image: Image.Image, box: np.ndarray) -> Image.Image:
    """The pixels that a box (xyxy, inside the image) touches; at least one."""
    return image.crop(touched(box, image.size))


def touched(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the pixels that a box (xyxy, inside an image of (W, H)) touches; at least one."""
    left, top = (min(int(np.floor(value)), side - 1) for value, side in zip(box[:2], size, strict=True))
    right, bottom = (int(np.ceil(value)) for value in box[2:])
    return left, top, max(right, left + 1), max(bottom, top + 1)
