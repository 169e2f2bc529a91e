"""CropCLIP, CropPick and SAMIoU of one picture: the kind ``metrics``."""

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from atelier.evaluation.crop_score import CropScore
from atelier.evaluation.crops import crop, pixels
from atelier.evaluation.regional_evaluation import mean_of_means
from atelier.evaluation.sam_iou import mask_box, mask_ious
from tests.parity.case import Case, Comparison

TOLERANCE = (1e-3, 0.0)
"""Of the facts: logits span ±50, and transformers' CLIP of another version gives them to 1e-4."""


def metrics(case: Case) -> Comparison:
    """A CLIP of the case's weights in a folder, opened as any other is; SAM's masks are the case's."""
    picture = Image.fromarray(case.inputs["image"].numpy().astype(np.uint8))
    size = np.array(picture.size * 2)
    boxes = pixels((case.inputs["boxes"].numpy() / size).tolist(), picture.size)
    crops = [crop(picture, box) for box in boxes]
    with tempfile.TemporaryDirectory() as folder:
        rows = [[int(token) for token in row if token >= 0] for row in case.inputs["input_ids"].tolist()]
        clip = _opened(case, folder, rows)
        scores = torch.from_numpy(clip(crops, [" ".join(map(_word, row[1:-1])) for row in rows])).float()
        pixel_values = clip.pixel_values(crops)
    masks = case.inputs["sam_masks"].numpy() > 0
    ious = mask_ious(masks, case.inputs["sam_scores"].numpy(), case.inputs["boxes"].double().numpy(), legacy=True)
    empty = (-1.0, -1.0, -1.0, -1.0)
    ours: dict[str, Any] = {
        "pixel_values": pixel_values,
        "mask_boxes": torch.tensor([mask_box(mask, legacy=True) or empty for mask in masks]),
        "object_sizes": torch.tensor([each.width * each.height for each in crops]),
        "samiou": torch.from_numpy(ious),
        "samiou_mean": torch.tensor(mean_of_means([ious.tolist()])),
    }
    for name in ("cropclip", "pickscore"):
        ours |= {name: scores, f"{name}_mean": torch.tensor(mean_of_means([scores.tolist()]))}
    return Comparison(ours, dict(case.outputs), TOLERANCE)


def _opened(case: Case, folder: str, rows: Sequence[Sequence[int]]) -> CropScore:
    spec = case.spec["clip_config"]
    model = CLIPModel(CLIPConfig(**spec))
    model.load_state_dict(case.weights, strict=True)
    model.save_pretrained(folder)
    text = spec["text_config"]
    begin, end, pad = (text[f"{name}_token_id"] for name in ("bos", "eos", "pad"))
    assert all(row[0] == begin and row[-1] == end for row in rows)
    words = {_word(number): number for number in range(text["vocab_size"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token=_word(pad)))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{_word(begin)} $A {_word(end)}", special_tokens=[(_word(begin), begin), (_word(end), end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_word(begin), eos_token=_word(end), pad_token=_word(pad)
    ).save_pretrained(folder)
    return CropScore(folder)


def _word(token: int) -> str:
    """A text that is this token and no part of another's."""
    return f"t{token}e"


KINDS: dict[str, Callable[[Case], Comparison]] = {"metrics": metrics}
