"""Descriptions of pictures by an image-to-text model that is asked: BLIP-2, or any chat model of transformers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from atelier.annotate.captioner import THREADS
from atelier.annotate.loading import half_where_fast, load, load_model
from atelier.annotate.places import NONE, Place
from atelier.errors import ConfigError


class OpenedModel:
    """A model and its processor, opened once, whatever it is asked.

    Args:
        place: any model of ``AutoModelForImageTextToText``; float16 on an accelerator, float32 on a CPU.

    Raises:
        ConfigError: it cannot be loaded, or its processor takes no pictures.
    """

    def __init__(self, place: Place) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = load_model(AutoModelForImageTextToText, place, half_where_fast())
        self.processor = load(AutoProcessor, place)
        if not hasattr(self.processor, "tokenizer") or not hasattr(self.processor, "image_processor"):
            raise ConfigError(
                f"{place.name}: its processor is a {type(self.processor).__name__}, which reads no pictures with text",
                "give a BLIP-2, or a chat model with its whole folder, e.g. llava-hf/llava-v1.6-mistral-7b-hf",
            )
        # What is written follows the prompt, so a shorter one is filled up before it.
        self.processor.tokenizer.padding_side = "left"
        queries = getattr(self.model.config, "num_query_tokens", None)
        if queries and getattr(self.processor, "num_query_tokens", queries) is None:
            self.processor.num_query_tokens = queries  # BLIP-2's older folders do not state it

    @property
    def chats(self) -> bool:
        """Whether it is a chat model: it has a form for what is said to it."""
        return any(getattr(part, "chat_template", None) for part in (self.processor, self.processor.tokenizer))

    def asked(self, prompt: str) -> str:
        """A prompt as the model reads it: in its chat's form where it has one."""
        if not self.chats:
            return prompt
        content = [{"type": "image"}, *([{"type": "text", "text": prompt}] if prompt else [])]
        said = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False))


class Describer:
    """Says what a picture shows: the likeliest token each time, never a draw.

    Args:
        opened: the model.
        prompt: what it is asked; "" or "none" asks nothing.
        tokens: most new tokens.
        batch: pictures at once.
        side: most pixels of a picture's shorter side; a larger one is reduced.
    """

    def __init__(self, opened: OpenedModel, prompt: str, tokens: int, batch: int, side: int) -> None:
        self._model, self._processor, self._nested = opened.model, opened.processor, opened.chats
        self._prompt = opened.asked("" if prompt == NONE else prompt)
        # Some chats' forms begin a text themselves; it must not be begun twice.
        self._begun = bool(bos := opened.processor.tokenizer.bos_token) and self._prompt.startswith(str(bos))
        self._tokens, self._batch, self._side = tokens, batch, side
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="describe")

    @torch.inference_mode()
    def captions(self, crops: Sequence[Image.Image]) -> list[str]:
        """A text for each picture, in one line; it may be empty."""
        chunks = [crops[begin : begin + self._batch] for begin in range(0, len(crops), self._batch)]
        # Pictures of the next chunk are made ready while the model writes about this one.
        waiting = [self._pool.submit(self._inputs, chunk) for chunk in chunks]
        return list(chain.from_iterable(self._of(job.result()) for job in waiting))

    def _inputs(self, pictures: Sequence[Image.Image]) -> Any:
        reduced = [shorter(picture, self._side) for picture in pictures]
        if not self._prompt:
            return self._processor.image_processor(images=reduced, return_tensors="pt")
        # A picture for each text: some chat models take a plain list for the pictures of one text.
        given = [[picture] for picture in reduced] if self._nested else reduced
        texts = [self._prompt] * len(given)
        return self._processor(
            images=given, text=texts, padding=True, add_special_tokens=not self._begun, return_tensors="pt"
        )

    def _of(self, inputs: Any) -> list[str]:
        given = {
            name: value.to(self._model.device, self._model.dtype)
            if value.is_floating_point()
            else value.to(self._model.device)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }
        written = self._model.generate(
            **given, max_new_tokens=self._tokens, do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None
        )
        texts = self._processor.tokenizer.batch_decode(
            behind(written, given.get("input_ids")), skip_special_tokens=True
        )
        return [" ".join(text.split()) for text in texts]


def behind(written: Tensor, prompt: Tensor | None) -> Tensor:
    """What was written [B, n] without the prompt [B, m], which a decoder repeats and an encoder's decoder does not."""
    if (
        prompt is None
        or written.shape[1] < prompt.shape[1]
        or not bool((written[:, : prompt.shape[1]] == prompt).all())
    ):
        return written
    return written[:, prompt.shape[1] :]


def shorter(picture: Image.Image, side: int) -> Image.Image:
    """A picture whose shorter side has at most ``side`` pixels."""
    scale = side / min(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(round(length * scale), 1) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
