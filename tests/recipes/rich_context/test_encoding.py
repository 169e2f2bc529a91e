"""What is stored of regions, and batches of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atelier.errors import ConfigError
from atelier.models.grounded_unet import adapter_parameters
from atelier.models.regional.reading import read_regions
from atelier.recipes.registry import get
from atelier.recipes.rich_context_objective import TEXTS
from atelier.sampling.layout_input import PromptLayout
from atelier.sampling.region_text import region_reader
from tests.recipes.rich_context.pictures import EXAMPLES, OVERLAPPING, PHRASES, encoded, example, text_of


def test_what_is_the_same_in_every_picture_is_not_stored(samples: list[dict[str, Any]]) -> None:
    first, whole, bare = samples
    assert first["wordless"].tolist() == [0]
    assert whole["wordless"].tolist() == [], "its one region has words"
    assert bare["wordless"].tolist() == [0]
    assert bare["text"].shape == (0, 128)
    # Three regions with words: each object's own and both, the overlap with both descriptions.
    assert sorted(set(first["text_region"].tolist())) == [1, 2, 3]
    both = (first["text_region"] == 3).sum()
    assert both == (first["text_region"] == 1).sum() + (first["text_region"] == 2).sum()
    assert first["text"].dtype == np.float16
    assert first["cells"].shape == (16, 16)


@pytest.mark.parametrize("fuser", ["ca", "casa"])
def test_a_batch_is_what_the_sampler_makes_of_the_same_layout(
    name: str, base: Path, samples: list[dict[str, Any]], fuser: str
) -> None:
    """Tokens may stand in another order; the layers' answer is the same."""
    recipe = get(name, "laptop", {"fuser": fuser})
    objective = recipe.objective(base)
    torch.manual_seed(0)
    unet = objective.build()
    for parameter in adapter_parameters(unet).values():
        torch.nn.init.normal_(parameter, std=0.05)
    batch = objective.collate(samples)
    pipeline = recipe.pipeline(base, unet)
    layouts = [PromptLayout([tuple(box) for box in one.boxes.tolist()], list(one.phrases)) for one in EXAMPLES[:2]]
    own = pipeline._region_layouts(layouts, (16, 16), 1.0, False)
    grounding = pipeline._tokens(own, (16, 16))
    with torch.no_grad():
        stored = unet.position_net(**batch["regions"])
        block = unet.mid_block.attentions[0].transformer_blocks[0]
        x = torch.randn(3, 16, block.fuser.null_text_feat.shape[0])
        ours, theirs = block.fuser(x, stored)[:2], block.fuser(x[:2], grounding)
    assert (ours - x[:2]).abs().max() > 1e-3
    # What is stored is fp16, and the map is cut from float32 boxes on both sides.
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)


def test_a_batch_holds_every_token_that_a_dense_one_would(name: str, base: Path, samples: list[dict[str, Any]]) -> None:
    text = text_of(name, base)
    tokenizer = text.tokenizers[0]
    given = [(EXAMPLES[0].boxes, PHRASES)]
    ((_, wanted),) = read_regions(given, 16, 16, region_reader(text.tokenizers, text.encoders))
    regions = get(name, "laptop").objective(base).collate(samples)["regions"]
    assert regions["text"].shape[1] % 8 == 0
    for region in range(4):
        rows = regions["region"][0] == region
        expected = torch.from_numpy(wanted.text[wanted.region == region])
        torch.testing.assert_close(regions["text"][0][rows].float(), expected, atol=1e-2, rtol=1e-2)
        assert torch.equal(regions["bias"][0][rows], torch.from_numpy(wanted.bias[wanted.region == region]))
    assert (regions["cells"][1] == 0).all()
    assert (regions["region"][2] == 0).sum() == tokenizer.model_max_length, "the background's states of no words"


@pytest.mark.parametrize(
    ("phrases", "parity", "wordless"),
    [(("...", "; ;"), False, [0, 1, 2, 3]), ((";", "; ;"), True, [0, 1, 2])],  # upstream's overlap is a separator
)
def test_descriptions_of_signs_alone_are_stored_as_no_words(
    name: str, base: Path, phrases: tuple[str, str], parity: bool, wordless: list[int]
) -> None:
    """What is made again of the sample is what the sampler reads of the same layout."""
    recipe, silent = get(name, "laptop", {"parity": parity}), example(7, OVERLAPPING, phrases)
    made = recipe.encoder(base).encode(np.zeros((1, 64, 64, 3), np.uint8), [silent])[0]
    assert made["wordless"].tolist() == wordless
    assert made["wordless"].dtype == np.int16
    regions = recipe.objective(base).collate([made | {"json": {"boxes": OVERLAPPING}}])["regions"]
    text = text_of(name, base)
    reader = region_reader(text.tokenizers, text.encoders)
    ((_, wanted),) = read_regions([(silent.boxes, phrases)], 16, 16, reader, legacy=parity)
    for number in range(4):
        given, read = regions["region"][0] == number, wanted.region == number
        expected = torch.from_numpy(wanted.text[read])
        torch.testing.assert_close(regions["text"][0][given].float(), expected, atol=1e-2, rtol=1e-2)


def test_a_description_beside_signs_alone(name: str, base: Path) -> None:
    mixed = example(8, OVERLAPPING, ("...", "a cat"))
    made = get(name, "laptop").encoder(base).encode(np.zeros((1, 64, 64, 3), np.uint8), [mixed])[0]
    assert made["wordless"].tolist() == [0, 2], "the first box alone"


def test_objects_that_the_text_encoder_would_cut_off_are_kept(name: str, base: Path) -> None:
    """Four boxes around one spot, 3 + 3 + 3 + 3 words and three separators, of which the twin's encoder reads 14."""
    boxes = [[0.0, 0.0, 1.0 - 0.2 * n, 1.0 - 0.2 * n] for n in range(4)]
    phrases = ("a big seven", "a tiny three", "a large one", "a small two")
    images = np.zeros((1, 64, 64, 3), np.uint8)

    def owned(**given: Any) -> list[int]:
        """How many tokens each object has in the smallest box."""
        encoder = get(name, "laptop", given).encoder(base)
        (made,) = encoder.encode(images, [example(9, boxes, phrases)])
        rows = made["text_region"] == made["cells"][0, 0]
        return [int(np.isclose(made["text_boxes"][rows], box, atol=1e-6).all(1).sum()) for box in boxes]

    tokenizer = text_of(name, base).tokenizers[0]
    assert tokenizer.model_max_length == 16
    assert len(tokenizer("; ".join(phrases)).input_ids) > 16
    lengths = [len(tokenizer(phrase).input_ids) - 2 for phrase in phrases]
    assert owned() == lengths
    cut = owned(parity=True)
    assert cut[:2] == lengths[:2]
    assert cut[3] < lengths[3]


def test_of_too_many_tokens_the_smallest_regions_are_left_out_and_counted(
    name: str, base: Path, samples: list[dict[str, Any]]
) -> None:
    """The overlap is the smallest region, and has as many tokens as the two boxes' own together."""
    whole, images = samples[0], np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    background = TEXTS[get(name, "laptop").config.family].load(base).tokenizers[0].model_max_length
    tokens = len(whole["text_region"]) + background
    made = {}
    for most in (tokens, tokens - 1, background):
        encoder = get(name, "laptop", {"max_region_tokens": most}).encoder(base)
        made[most] = encoder.encode_squares({64: images}, EXAMPLES)
    kept, fewer, none = (made[most][0] for most in made)
    assert all(np.array_equal(kept.arrays[field], whole[field]) for field in kept.arrays)
    assert kept.counts == {
        "region_tokens": tokens, "regions_left_out": 0, "pictures_limited": 0, "descriptions_cut": 0,
    }  # fmt: skip
    rows = whole["text_region"] != 3
    assert np.array_equal(fewer.arrays["text"], whole["text"][rows])
    assert np.array_equal(fewer.arrays["text_region"], whole["text_region"][rows])
    assert np.array_equal(fewer.arrays["cells"], np.where(whole["cells"] == 3, -1, whole["cells"]))
    assert fewer.arrays["wordless"].tolist() == [0]
    assert fewer.counts["regions_left_out"] == fewer.counts["pictures_limited"] == 1
    assert fewer.counts["region_tokens"] == background + rows.sum()
    assert none.arrays["text"].shape == (0, 128)
    assert none.arrays["wordless"].tolist() == [0], "never the background"
    assert none.counts["regions_left_out"] == 3
    encodings = [get(name, "laptop", {"max_region_tokens": most}).encoding for most in (5, 6)]
    assert encodings[0] != encodings[1], "other shards"


def test_cells_of_regions_that_stay_see_what_they_saw(name: str, base: Path, samples: list[dict[str, Any]]) -> None:
    """Regions keep their numbers, by which their unions are found again."""
    fewer = [
        given | arrays
        for given, arrays in zip(
            samples, encoded(name, base, max_region_tokens=len(samples[0]["text_region"]) + 15), strict=True
        )
    ]
    gone = torch.from_numpy(samples[0]["cells"].astype(np.int64)).flatten() == 3
    assert (fewer[0]["cells"].flatten()[gone.numpy()] == -1).all()
    objective = get(name, "laptop").objective(base)
    torch.manual_seed(0)
    unet = objective.build()
    for parameter in adapter_parameters(unet).values():
        torch.nn.init.normal_(parameter, std=0.05)
    fuser = unet.down_blocks[-1].attentions[0].transformer_blocks[0].fuser
    x = torch.randn(1, 256, fuser.null_text_feat.shape[0])
    with torch.no_grad():
        own, other = (
            fuser(x, unet.position_net(**objective.collate(given[:1])["regions"]))[0] for given in (samples, fewer)
        )
    assert (own - other)[gone].abs().max() > 1e-3
    torch.testing.assert_close(own[~gone], other[~gone], atol=1e-5, rtol=1e-5)
    objective = get(name, "laptop", {"fuser": "casa"}).objective(base)
    unions = [objective.collate(given[:1])["regions"]["unions"] for given in (samples, fewer)]
    assert torch.equal(*unions)
    assert unions[0].flatten(2).sum(2)[0, 1:].tolist() == [64, 64, (samples[0]["cells"] > 0).sum()]


def test_descriptions_longer_than_the_text_encoder_reads_are_counted(name: str, base: Path) -> None:
    encoder = get(name, "laptop").encoder(base)
    long = " ".join(["seven"] * 15)
    given = [example(0, OVERLAPPING, (long, "a two")), example(1, OVERLAPPING, PHRASES)]
    made = encoder.encode_squares({64: np.zeros((2, 64, 64, 3), np.uint8)}, given)
    assert [each.counts["descriptions_cut"] for each in made] == [1, 0]


def test_several_resolutions_are_refused(name: str, base: Path) -> None:
    encoder = get(name, "laptop").encoder(base)
    squares = {side: np.zeros((1, side, side, 3), np.uint8) for side in (64, 32)}
    with pytest.raises(ConfigError, match="resolutions 32, 64: regions are cut for one latent"):
        encoder.encode_squares(squares, EXAMPLES[:1])


def test_whether_a_text_fits_is_the_tokenizers_word(name: str, base: Path) -> None:
    text = text_of(name, base)
    reader = region_reader(text.tokenizers, text.encoders)
    for count in range(1, 20):
        words = " ".join(["seven"] * count)
        assert reader.fits(words) == (len(text.tokenizers[0](words).input_ids) <= 16) == (count <= 14)
    with pytest.raises(ConfigError, match="no text encoder for descriptions"):
        region_reader((text.tokenizers[0], None), text.encoders)
