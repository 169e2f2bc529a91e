"""Boxes and phrases in every form that a caller may give, and the faults that are named."""

from typing import Any

import numpy as np
import pytest
import torch

from atelier.errors import ConfigError
from atelier.sampling.layout_input import Names, read_layouts

BOX = (0.125, 0.25, 0.5, 0.625)
OTHER = (0.5, 0.5, 1.0, 1.0)


def read(boxes: Any, phrases: Any, embeddings: Any = None, prompts: int = 2, most: int = 3) -> list[Any]:
    return read_layouts(boxes, phrases, embeddings, prompts, most)


@pytest.mark.parametrize("form", [list, torch.tensor, np.array])
def test_one_list_for_every_prompt(form: Any) -> None:
    for layout in read(form([list(BOX), list(OTHER)]), ["a", ""]):
        assert layout.boxes == [BOX, OTHER]
        assert layout.phrases == ["a", ""]  # an empty phrase is one


def test_a_list_a_prompt_some_empty() -> None:
    first, second = read([[], [BOX]], [None, ["a"]])
    assert (first.boxes, first.phrases) == ([], [])
    assert (second.boxes, second.phrases) == ([BOX], ["a"])


@pytest.mark.parametrize("nothing", [None, [], ()])
def test_nothing(nothing: Any) -> None:
    assert read(nothing, None) == []


def test_shared_boxes_with_phrases_of_their_own() -> None:
    assert [layout.phrases for layout in read([BOX], [["a"], ["b"]])] == [["a"], ["b"]]


def test_embeddings_in_the_place_of_phrases() -> None:
    shared = read([BOX, OTHER], None, torch.ones(2, 8))
    assert all(layout.embeddings.shape == (2, 8) for layout in shared)
    own = read([[BOX], []], None, [torch.ones(1, 8), torch.ones(0, 8)])
    assert [len(layout.embeddings) for layout in own] == [1, 0]


@pytest.mark.parametrize(
    ("boxes", "phrases", "named"),
    [
        ([(0.5, 0.2, 0.1, 0.6)], ["a"], r"box 0 of prompt 0, \(0.5, 0.2, 0.1, 0.6\), is not a box: it is reversed"),
        ([(0.1, 0.6, 0.2, 0.5)], ["a"], "is reversed"),
        ([BOX, (0.1, 0.2, 1.5, 0.6)], ["a", "b"], "box 1 of prompt 0.*is not within 0 to 1"),
        ([(-0.1, 0.2, 0.5, 0.6)], ["a"], "is not within 0 to 1"),
        ([(51, 100, 153, 200)], ["a"], "is not within 0 to 1"),  # pixels
        ([(0.1, float("nan"), 0.5, 0.6)], ["a"], "not finite"),
        ([(0.1, 0.2, 0.1, 0.6)], ["a"], "has no area"),
        ([(0.1, 0.2, 0.5)], ["a"], "has 3 numbers, not 4"),
        ([(0.1, 0.2, 0.5, "x")], ["a"], "is not four numbers"),
        ([[BOX], [OTHER, (0.3, 0.3, 0.2, 0.4)]], [["a"], ["b", "c"]], "box 1 of prompt 1"),
        ([BOX] * 4, ["a"] * 4, "prompt 0 has 4 boxes, more than the 3 slots"),
        (None, ["a"], "prompt 0 has 0 boxes and 1 phrases"),
        ([BOX], None, "prompt 0 has 1 boxes and 0 phrases"),
        ([BOX], ["a", "b"], "prompt 0 has 1 boxes and 2 phrases"),
        ([BOX], "a dog", "gligen_phrases is the string 'a dog'"),
        ([BOX], [["a"]], "1 lists of phrases for 2 prompts"),
        ([[BOX]] * 3, [["a"]] * 3, "3 lists of boxes for 2 prompts"),
        ([[BOX], [BOX]], [["a"], [7]], "phrase 7 of prompt 1 is not a string"),
    ],
)
def test_faults_are_named(boxes: Any, phrases: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        read(boxes, phrases)


def test_faults_name_the_callers_own_arguments() -> None:
    names = Names("label", "labels", "label_states", "raise max_objs")
    for boxes, labels, states, named, todo in (
        ([BOX], "a dog", None, "labels is the string 'a dog'", "give a list: a label a box"),
        ([BOX], None, None, "prompt 0 has 1 boxes and 0 labels", "give a label a box"),
        ([BOX], [["a"]], None, "1 lists of labels for 2 prompts", "one a prompt"),
        ([[BOX], [BOX]], [["a"], [7]], None, "label 7 of prompt 1 is not a string", "give a label a box"),
        ([BOX] * 4, ["a"] * 4, None, "prompt 0 has 4 boxes", "raise max_objs"),
        ([BOX], ["a"], torch.ones(1, 8), "labels and label_states are both given", "give one of the two"),
        ([BOX], None, torch.ones(2, 8), "prompt 0 has 1 boxes and 2 label embeddings", "give a label a box"),
    ):
        with pytest.raises(ConfigError, match=named) as raised:
            read_layouts(boxes, labels, states, 2, 3, names)
        assert todo in str(raised.value)
    with pytest.raises(ConfigError, match="gligen_max_boxes"):
        read([BOX] * 4, ["a"] * 4)


def test_phrases_and_embeddings_at_once() -> None:
    with pytest.raises(ConfigError, match="both given"):
        read([BOX], ["a"], torch.ones(1, 8))
