"""Detectors for GenEval: closed sets of classes (DETR …), instance masks (Mask2Former …), open ones by their names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from atelier.annotate.boxes import nms
from atelier.annotate.detector import GroundingDetector
from atelier.annotate.places import Place
from atelier.errors import ConfigError
from atelier.evaluation.geneval.objects import Found, ObjectFinder
from atelier.models.pretrained import load, load_model

LEAST = 0.05
"""Scores below this are of no use to any threshold."""
GROUNDED_BOX, GROUNDED_TEXT, SAME_OBJECT = 0.2, 0.2, 0.7


def open_finder(name: str) -> ObjectFinder:
    """A detector by its folder, or its id on the hub (``org/name``, ``org/name@revision``).

    Raises:
        ConfigError: it cannot be loaded, or is no detector.
    """
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto as known

    place, _, revision = name.partition("@")
    kind = str(load(AutoConfig, place, revision).model_type)
    if kind == "grounding-dino":
        return GroundedFinder(Place(place, revision, "", kind))
    if kind in known.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES:
        return NamedFinder(place, revision)
    if kind in known.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        return BoxFinder(place, revision)
    if kind in known.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES:
        return MaskFinder(place, revision)
    raise ConfigError(
        f"{name} is a {kind}, no detector",
        "give a DETR, Mask2Former, Grounding DINO or OWL-ViT, e.g. facebook/mask2former-swin-small-coco-instance",
    )


class _Closed:
    """A model that knows a fixed list of classes by the words of its ``id2label``."""

    def __init__(self, kind: Any, name: str, revision: str) -> None:
        from transformers import AutoImageProcessor

        self.name = name
        self._model = load_model(kind, name, revision)
        self._processor = load(AutoImageProcessor, name, revision)
        self._numbers = {str(label).lower(): int(number) for number, label in self._model.config.id2label.items()}

    def check(self, labels: Sequence[str]) -> None:
        """See ``ObjectFinder.check``."""
        unknown = [label for label in labels if self._number(label) is None]
        if unknown:
            raise ConfigError(
                f"{self.name} has no class for {', '.join(unknown[:8])}",
                "give a model of COCO's 80 classes, or one that finds things by their names (Grounding DINO, OWL-ViT)",
            )

    def _number(self, label: str) -> int | None:
        """A class's number; COCO calls a "tv remote" a remote, a "computer mouse" a mouse."""
        words = label.lower().split()
        for begin in range(len(words)):
            if (number := self._numbers.get(" ".join(words[begin:]))) is not None:
                return number
        return None

    def _names(self, labels: Sequence[str]) -> dict[int, str]:
        """The asked-for name of each class's number."""
        return {number: label for label in labels if (number := self._number(label)) is not None}

    @torch.inference_mode()
    def _outputs(self, pictures: Sequence[Image.Image]) -> Any:
        inputs = self._processor(images=list(pictures), return_tensors="pt")
        wanted = {
            name: value.to(self._model.device) for name, value in inputs.items() if isinstance(value, torch.Tensor)
        }
        return self._model(**wanted)


class BoxFinder(_Closed):
    """``ObjectFinder`` by a model for object detection (DETR and its kin, YOLOS)."""

    def __init__(self, name: str, revision: str = "") -> None:
        from transformers import AutoModelForObjectDetection

        super().__init__(AutoModelForObjectDetection, name, revision)

    def find(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Found]]:
        """See ``ObjectFinder.find``."""
        sizes = [(picture.height, picture.width) for picture in pictures]
        results = self._processor.post_process_object_detection(
            self._outputs(pictures), threshold=LEAST, target_sizes=sizes
        )
        return [
            _sorted(
                Found(names[number], score, tuple(box))
                for number, score, box in zip(
                    *(result[key].tolist() for key in ("labels", "scores", "boxes")), strict=True
                )
                if number in names
            )
            for result, names in zip(results, map(self._names, labels), strict=True)
        ]


class MaskFinder(_Closed):
    """``ObjectFinder`` by a model for instance segmentation (Mask2Former, as published)."""

    def __init__(self, name: str, revision: str = "") -> None:
        from transformers import AutoModelForUniversalSegmentation

        super().__init__(AutoModelForUniversalSegmentation, name, revision)

    def find(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Found]]:
        """See ``ObjectFinder.find``."""
        sizes = [(picture.height, picture.width) for picture in pictures]
        results = self._processor.post_process_instance_segmentation(
            self._outputs(pictures), threshold=LEAST, target_sizes=sizes, return_binary_maps=True
        )
        return [self._objects(result, self._names(own)) for result, own in zip(results, labels, strict=True)]

    def _objects(self, result: dict[str, Any], names: dict[int, str]) -> list[Found]:
        masks = result["segmentation"]
        found = []
        for row, segment in enumerate(result["segments_info"]):
            if segment["label_id"] in names and masks is not None:
                mask = masks[row].cpu().numpy() > 0.5
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                if len(rows):
                    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
                    found.append(Found(names[segment["label_id"]], float(segment["score"]), box, mask))
        return _sorted(found)


class NamedFinder:
    """``ObjectFinder`` by a model that is told what to look for (OWL-ViT, OWLv2)."""

    def __init__(self, name: str, revision: str = "") -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._model = load_model(AutoModelForZeroShotObjectDetection, name, revision)
        self._processor = load(AutoProcessor, name, revision)

    def check(self, labels: Sequence[str]) -> None:
        """Every name can be looked for."""

    @torch.inference_mode()
    def find(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Found]]:
        """See ``ObjectFinder.find``; a picture at a time, as each has its own names. Doubled boxes are taken out."""
        found = []
        for picture, own in zip(pictures, labels, strict=True):
            names = list(dict.fromkeys(own))
            asked = [[f"a photo of a {name}" for name in names]]
            inputs = self._processor(text=asked, images=picture, return_tensors="pt").to(self._model.device)
            outputs = self._model(**inputs)
            (result,) = self._processor.post_process_grounded_object_detection(
                outputs, threshold=LEAST, target_sizes=[(picture.height, picture.width)]
            )
            boxes, scores, numbers = (result[key].float().cpu().numpy() for key in ("boxes", "scores", "labels"))
            objects: list[Found] = []
            for number, name in enumerate(names):
                rows = np.flatnonzero(numbers == number)
                for row in rows[nms(boxes[rows], scores[rows], SAME_OBJECT)].tolist():
                    objects.append(Found(name, float(scores[row]), tuple(boxes[row].tolist())))
            found.append(_sorted(objects))
        return found


class GroundedFinder:
    """``ObjectFinder`` by the project's Grounding DINO."""

    def __init__(self, place: Place, batch: int = 4) -> None:
        self._detector = GroundingDetector(place, GROUNDED_BOX, GROUNDED_TEXT, SAME_OBJECT, batch)

    def check(self, labels: Sequence[str]) -> None:
        """Every name can be looked for."""

    def find(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Found]]:
        """See ``ObjectFinder.find``."""
        prepared = [self._detector.prepare(picture.convert("RGB")) for picture in pictures]
        sizes = [(picture.height, picture.width) for picture in pictures]
        detected = self._detector.detect(prepared, [list(dict.fromkeys(own)) for own in labels], sizes)
        return [
            _sorted(
                Found(label, float(score), tuple(box.tolist()))
                for label, score, box in zip(one.labels, one.scores, one.boxes, strict=True)
                if label
            )
            for one in detected
        ]


def _sorted(found: Any) -> list[Found]:
    return sorted(found, key=lambda one: -one.score)
