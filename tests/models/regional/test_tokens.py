"""Spans, boxes and biases of a region's text; the separator that CLIP's tokenizer loses."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from atelier.errors import DataError
from atelier.models.regional.dense import compact
from atelier.models.regional.fusers import RegionalCrossAttention
from atelier.models.regional.grounding import Grounding
from atelier.models.regional.reading import Reader, read_regions
from atelier.models.regional.regions import Region, map_regions
from atelier.models.regional.tokens import EncodedTexts, RegionTokens, condition, pooled_tokens, spans
from atelier.recipes.twins.text import BEGIN, byte_alphabet
from tests.models.regional.layouts import END, LENGTH, SEPARATOR, encode, random_boxes, randomise
from tests.parity.case import Case
from tests.parity.rich_context import DENSE, stub_texts
from tests.parity.test_parity import OWN

BOTH = (Region((0, 1), (1.0, 0.25)),)
BOXES = np.array([[0.1, 0.1, 0.6, 0.6], [0.4, 0.4, 0.9, 0.9]])


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """CLIP's splitting of words and signs, with its merges of a sign and the semicolon."""
    letters = byte_alphabet()
    signs = [(sign, ";</w>") for sign in ".\"'%)_!"]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in signs), BEGIN]
    vocab = {token: number for number, token in enumerate([*tokens, "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=signs, model_max_length=40)


def reader(tokenizer: CLIPTokenizer) -> Reader:
    def encoded(texts: Any) -> EncodedTexts:
        ids = tokenizer(list(texts), padding="max_length", max_length=40, truncation=True).input_ids
        array = np.array(ids)
        return EncodedTexts(array, array[..., None].astype(np.float32))

    def fits(text: str) -> bool:
        return len(tokenizer(text).input_ids) <= 40

    return Reader(encoded, fits, tokenizer.convert_tokens_to_ids(";</w>"), tokenizer.eos_token_id)


@pytest.mark.parametrize("end", [".", '."', "'", " 9%", "(x)", "_", "!!!", " . ", ";.;", "\u037e", "\uff1b.", ""])
def test_an_overlaps_tokens_have_their_own_objects_box(tokenizer: CLIPTokenizer, end: str) -> None:
    ((found, made),) = read_regions([(BOXES, [f"rug{end}", f"cat{end}"])], 8, 8, reader(tokenizer))
    overlap = [region.members for region in found.regions].index((0, 1))
    rows = made.region == overlap
    first, second = (np.isclose(made.boxes[rows], box, atol=1e-6).all(1) for box in BOXES)
    kept = tokenizer.convert_ids_to_tokens(made.text[rows, 0].astype(int).tolist())
    assert (first ^ second).all()
    assert [token for token, own in zip(kept, first, strict=True) if own][:3] == ["r", "u", "g</w>"]
    assert [token for token, own in zip(kept, second, strict=True) if own][:3] == ["c", "a", "t</w>"]
    assert ";</w>" not in kept


def test_upstreams_separator_is_lost_after_a_sign(tokenizer: CLIPTokenizer) -> None:
    ((found, made),) = read_regions([(BOXES, ["rug.", "cat."])], 8, 8, reader(tokenizer), legacy=True)
    overlap = [region.members for region in found.regions].index((0, 1))
    assert np.allclose(made.boxes[made.region == overlap], BOXES[0])
    assert (made.bias[made.region == overlap] == made.bias[made.region == overlap][0]).all()


def test_bias_and_box_of_every_kept_token() -> None:
    texts = encode(["red rug; a big cat"])
    made = condition(BOTH, BOXES, texts, separator=SEPARATOR, end=END, iou_weight=2.0)
    assert made.text.tolist() == texts.states[0, [1, 2, 4, 5, 6]].tolist()
    np.testing.assert_allclose(made.bias, [0, 0, -1.5, -1.5, -1.5])
    np.testing.assert_allclose(made.boxes, BOXES[[0, 0, 1, 1, 1]], atol=1e-7)
    assert made.region.tolist() == [0] * 5
    flat = condition(BOTH, BOXES, texts, separator=SEPARATOR, end=END, iou_weight=0.0)
    assert (flat.bias == 0).all()


def test_texts_of_one_region_compete_as_one() -> None:
    """Two texts of a region: each object's own box and bias, one number; a text without words has no tokens beside."""
    texts = encode(["red rug", "", "a big cat", "", ""])
    parts = [Region((0,), (1.0,)), Region((1,), (0.5,)), Region((1,), (0.25,)), Region((0,), (1.0,)), Region((), ())]
    made = condition(parts, BOXES, texts, separator=SEPARATOR, end=END, numbers=[0, 0, 0, 4, 5])
    np.testing.assert_allclose(made.bias[:5], [0, 0, -0.75, -0.75, -0.75])
    np.testing.assert_allclose(made.boxes[:5], BOXES[[0, 0, 1, 1, 1]], atol=1e-7)
    assert made.region.tolist() == [0] * 5 + [4] * LENGTH + [5] * LENGTH
    assert (made.boxes[5:] == -1).all()
    silent = condition(parts[:2], BOXES, encode(["", ""]), separator=SEPARATOR, end=END, numbers=[3, 3])
    assert silent.region.tolist() == [3] * LENGTH, "a region's states of no words are there once"


@pytest.mark.parametrize(("region", "label"), [(Region((), ()), ""), (Region((0,), (1.0,)), "")])
def test_a_region_without_words_keeps_every_state(region: Region, label: str) -> None:
    texts = encode([label])
    made = condition([region], BOXES, texts, separator=SEPARATOR, end=END)
    assert np.array_equal(made.text, texts.states[0])
    assert (made.boxes == -1).all()
    assert (made.bias == 0).all()
    assert len(made.region) == LENGTH


def test_what_the_row_has_no_place_for_has_no_tokens() -> None:
    long, cut = "one two three four five six", "seven eight nine ten eleven twelve"
    made = condition(BOTH, BOXES, encode([f"{long}; {cut}"]), separator=SEPARATOR, end=END)
    assert np.isclose(made.boxes, BOXES[0]).all(1).sum() == 6
    assert np.isclose(made.boxes, BOXES[1]).all(1).sum() == LENGTH - 2 - 7
    assert spans(np.array([1, 10, 11, 12, 13, END]), 2, separator=SEPARATOR, end=END) == [(1, 5)]
    assert spans(np.array([1, 10, SEPARATOR, SEPARATOR, 13, END]), 2, separator=SEPARATOR, end=END) == [(1, 2), (3, 5)]
    assert spans(np.array([1, 10, 11]), 1, separator=SEPARATOR, end=END) == [(1, 3)]


def test_the_compact_form_attends_as_the_golden_dense_one() -> None:
    """Upstream's six dense tensors, and our tokens made from the same boxes, labels and encoder's stubs."""
    case = Case(OWN / "rich_context/grounding_inputs_a.json")
    spec, given = case.spec, case.inputs
    boxes = given["boxes"].double().numpy() / 128
    found = map_regions(boxes, 16, 16, legacy=True)
    texts = stub_texts(case.weights, [given["input_ids"].long(), given["input_ids_2"].long()])
    made = condition(found.regions, boxes, texts, separator=spec["sep"], end=spec["eos"])
    assert len(made.region) < spec["max_objs"] * texts.states.shape[1] / 2
    own = Grounding(*(torch.from_numpy(part)[None] for part in (made.text, made.bias, made.region, found.cells)))
    dense = {name: tensor[1:] for name, tensor in case.outputs.items()}
    theirs = compact(*(dense[name] for name in DENSE))
    golden = Grounding(theirs["text"], theirs["bias"], theirs["region"], theirs["cells"])
    layer = RegionalCrossAttention(16, texts.states.shape[-1], 2, 8)
    randomise(layer)
    x = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x, own), layer(x, golden), atol=1e-6, rtol=1e-5)
    # And the dense one itself, slot by slot.
    sums = torch.zeros_like(x)
    bias, text = dense["cross_attention_mask"][0], dense["text_embeddings"][0]
    masks = torch.nn.functional.interpolate(dense["reorg_masks"], (8, 8)).flatten(2)[0]
    attn = layer.attn
    q = attn.to_q(x[0]).unflatten(-1, (2, 8)).transpose(0, 1)
    for slot in range(spec["max_objs"]):
        k, v = (part(text[slot]).unflatten(-1, (2, 8)).transpose(0, 1) for part in (attn.to_k, attn.to_v))
        weights = (q @ k.transpose(-1, -2) / 8**0.5 + bias[slot]).softmax(-1)
        sums[0] += masks[slot][:, None] * attn.to_out[0]((weights @ v).transpose(0, 1).flatten(1))
    expected = x + sums + (1 - masks.sum(0))[:, None] * layer.null_text_feat
    # Where a bias of -1000 is added to every score of a row, float32 keeps four digits of them.
    torch.testing.assert_close(layer(x, own), expected, atol=1e-4, rtol=1e-4)


def test_one_pooled_token_a_region() -> None:
    boxes = random_boxes(3)
    found = map_regions(boxes, 8, 8)
    states = np.arange(len(found.regions) * 4, dtype=np.float32).reshape(-1, 4)
    made = pooled_tokens(found.regions, boxes, states)
    assert made.region.tolist() == list(range(len(found.regions)))
    assert made.text is states
    for region, box in zip(found.regions, made.boxes, strict=True):
        np.testing.assert_allclose(box, boxes[region.members[0]] if region.members else -np.ones(4), rtol=1e-6)


def test_no_regions_at_all() -> None:
    made = condition([], BOXES, EncodedTexts(np.zeros((0, 5), int), np.zeros((0, 5, 3))), separator=3, end=2)
    assert [part.shape for part in made] == [(0, 3), (0, 4), (0,), (0,)]
    assert isinstance(made, RegionTokens)


def test_rows_and_regions_must_agree() -> None:
    with pytest.raises(DataError, match="1 regions"):
        condition(BOTH, BOXES, encode(["a", "b"]), separator=SEPARATOR, end=END)
    with pytest.raises(DataError, match="1 regions"):
        condition(BOTH, BOXES, encode(["a"]), separator=SEPARATOR, end=END, numbers=[0, 1])
    with pytest.raises(DataError, match="1 boxes for 2 boxes"):
        condition(BOTH, BOXES[:1], encode(["a"]), separator=SEPARATOR, end=END)
