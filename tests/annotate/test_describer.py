"""Models that are asked about pictures: BLIP-2 and a chat model, each alone and in batches, and what they are shown."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atelier.annotate.captioner import Captioner
from atelier.annotate.describer import Describer, OpenedModel, behind, shorter
from atelier.annotate.places import Place
from atelier.errors import ConfigError
from tests.annotate import tiny, tiny_chat


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


@pytest.fixture(scope="module")
def blip() -> OpenedModel:
    return OpenedModel(Place(tiny.folders()["captioner"], "", ""))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return OpenedModel(Place(str(tiny_chat.chat(tmp_path_factory.mktemp("chat"))), "", ""))


def test_blip_2_with_and_without_a_prompt(blip: OpenedModel) -> None:
    shown = pictures((60, 40), (50, 50), (30, 80))
    plain = Describer(blip, "none", 6, 2, 512).captions(shown)
    assert plain == Captioner(Place(tiny.folders()["captioner"], "", ""), 6, 2).captions(shown)
    assert not blip.chats
    asked = Describer(blip, "a photo of", 6, 2, 512).captions(shown)
    assert asked != plain
    assert all(asked)
    assert not any(text.startswith("a photo of") for text in asked)
    assert Describer(blip, "a photo of", 6, 1, 512).captions(shown) == asked
    assert Describer(blip, "a photo of", 6, 1, 512).captions([]) == []


def test_a_chat_model(chat: OpenedModel) -> None:
    shown = pictures((60, 60), (200, 90), (30, 150), (56, 56))
    assert chat.chats
    asked = chat.asked("what is a dog")
    assert asked.index("<image>") < asked.index("what is a dog") < asked.index("assistant")
    found = Describer(chat, "what is a dog", 8, 4, 512).captions(shown)
    assert len(set(found)) > 1
    assert not any("what is a dog" in text for text in found)
    # Prompts of several lengths in one batch are filled up before them: each picture's answer is its own.
    assert [Describer(chat, "what is a dog", 8, 1, 512).captions([each])[0] for each in shown] == found
    assert Describer(chat, "what is a dog", 8, 4, 512).captions(shown) == found
    assert Describer(chat, "a photo", 8, 4, 512).captions(shown) != found


def test_a_text_is_begun_once(tmp_path: Path) -> None:
    opened, shown = OpenedModel(Place(str(tiny_chat.chat(tmp_path)), "", "")), pictures((40, 40))
    for template in (tiny_chat.TEMPLATE, "<s> " + tiny_chat.TEMPLATE):
        opened.processor.chat_template = template
        ids = Describer(opened, "what is a dog", 8, 4, 512)._inputs(shown)["input_ids"][0].tolist()
        assert (ids[0], ids.count(1)) == (1, 1)


def test_a_smaller_picture_is_what_is_seen(chat: OpenedModel) -> None:
    (large,) = pictures((400, 240))
    reduced = shorter(large, 60)
    assert reduced.size == (100, 60)
    assert shorter(reduced, 60) is reduced
    assert shorter(reduced, 512) is reduced  # never enlarged
    small = Describer(chat, "what is a dog", 8, 4, 60)
    assert small.captions([large]) == small.captions([reduced])
    assert Describer(chat, "what is a dog", 8, 4, 512).captions([large]) != small.captions([large])


def test_what_was_written_behind_the_prompt() -> None:
    prompt = torch.tensor([[0, 7], [8, 9]])
    written = torch.tensor([[0, 7, 3, 4], [8, 9, 5, 6]])
    assert behind(written, prompt).tolist() == [[3, 4], [5, 6]]
    assert behind(written, None) is written
    assert behind(written, prompt + 1) is written  # an encoder's decoder writes alone
    assert behind(written[:, :1], prompt).tolist() == [[0], [8]]


def test_what_is_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded as AutoModelForImageTextToText"):
        OpenedModel(Place(tiny.folders()["detector"], "", ""))
