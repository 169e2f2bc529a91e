"""Boxes by Grounding DINO (arXiv 2303.05499) through transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from atelier.annotate.boxes import clip, nms, real
from atelier.annotate.loading import load, load_model
from atelier.annotate.places import Place
from atelier.annotate.prompt import prompts, tag_of


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of one image, the surest first.

    Attributes:
        boxes: float64 [n, 4], xyxy in pixels, inside the image.
        scores: float32 [n].
        labels: for each the tag that it was found by, "" where that cannot be told.
        dropped: boxes of no size, and those that a better one covers.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]
    dropped: int = 0


NOTHING = Detections(np.empty((0, 4)), np.empty(0, np.float32), ())


class GroundingDetector:
    """Finds what tags name.

    Args:
        place: a Grounding DINO.
        box_threshold: least score of a box.
        text_threshold: least score of a token that is to be in a box's label.
        nms_iou: of two boxes that overlap by more the better one stays, whatever their labels.
        batch: images that the model sees at once.
    """

    def __init__(self, place: Place, box_threshold: float, text_threshold: float, nms_iou: float, batch: int) -> None:
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        self._box_threshold, self._text_threshold = box_threshold, text_threshold
        self._nms_iou, self._batch = nms_iou, batch
        self._processor = load(AutoProcessor, place)
        self._model = load_model(GroundingDinoForObjectDetection, place)
        self._limit = int(self._model.config.max_text_len)

    def prepare(self, image: Image.Image) -> np.ndarray:
        """float32 [3, h, w], resized and normalised; called from several threads."""
        made = self._processor.image_processor(images=image, do_pad=False, return_tensors="np")
        return np.asarray(made["pixel_values"][0], np.float32)

    def detect(
        self, prepared: Sequence[np.ndarray], tags: Sequence[Sequence[str]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The boxes of each image; none for an image without tags.

        Args:
            prepared: what ``prepare`` returned.
            tags: of each image.
            sizes: (H, W) of each image as it is stored.
        """
        asked = [(row, prompt) for row, own in enumerate(tags) for prompt in prompts(own, self._length, self._limit)]
        raw: list[list[Detections]] = [[] for _ in prepared]
        for begin in range(0, len(asked), self._batch):
            rows, texts = zip(*asked[begin : begin + self._batch], strict=True)
            found = self._raw([prepared[row] for row in rows], list(texts), [sizes[row] for row in rows])
            for row, one in zip(rows, found, strict=True):
                raw[row].append(one)
        return [self._chosen(parts, own, size) for parts, own, size in zip(raw, tags, sizes, strict=True)]

    def _length(self, text: str) -> int:
        return len(self._processor.tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def _raw(self, pixels: list[np.ndarray], texts: list[str], sizes: list[tuple[int, int]]) -> list[Detections]:
        device = self._model.device
        text = self._processor.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self._limit,
            return_token_type_ids=True,
            return_tensors="pt",
        )
        values, mask = padded(pixels)
        inputs = {name: tensor.to(device) for name, tensor in (*text.items(), ("pixel_values", values))}
        outputs = self._model(**inputs, pixel_mask=mask.to(device))
        results: list[dict[str, Any]] = self._processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self._box_threshold,
            text_threshold=self._text_threshold,
            target_sizes=sizes,
        )
        return [
            Detections(
                result["boxes"].double().cpu().numpy(),
                result["scores"].float().cpu().numpy(),
                tuple(result["text_labels"]),
            )
            for result in results
        ]

    def _chosen(self, parts: list[Detections], tags: Sequence[str], size: tuple[int, int]) -> Detections:
        """One image's boxes, from the answers to all its prompts."""
        if not parts:
            return NOTHING
        boxes = clip(np.concatenate([part.boxes for part in parts]), size)
        scores = np.concatenate([part.scores for part in parts])
        labels = [label for part in parts for label in part.labels]
        good = np.flatnonzero(real(boxes))
        kept = good[nms(boxes[good], scores[good], self._nms_iou)]
        return Detections(
            boxes[kept],
            scores[kept],
            tuple(tag_of(labels[row], tags) for row in kept.tolist()),
            dropped=len(boxes) - len(kept),
        )


def padded(pixels: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """[3, h, w] images as one batch [B, 3, H, W], zeros at right and below, and the mask [B, H, W] of what is image."""
    height, width = (max(image.shape[axis] for image in pixels) for axis in (1, 2))
    values = torch.zeros(len(pixels), 3, height, width)
    mask = torch.zeros(len(pixels), height, width, dtype=torch.int64)
    for row, image in enumerate(pixels):
        values[row, :, : image.shape[1], : image.shape[2]] = torch.from_numpy(image)
        mask[row, : image.shape[1], : image.shape[2]] = 1
    return values, mask
