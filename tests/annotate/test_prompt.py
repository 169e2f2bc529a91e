"""Tags to the detector's prompt, and its labels back to tags."""

import pytest

from atelier.annotate.prompt import clean, prompts, tag_of


def length(text: str) -> int:
    """Words and full stops, and two for the ends."""
    return len(text.replace(".", " .").split()) + 2


def test_one_prompt() -> None:
    assert prompts(["a Dog", "traffic  light", "a dog", " ", "U.S. mail"], length, 256) == [
        "a dog. traffic light. u s mail."
    ]
    assert prompts([], length, 256) == prompts(["."], length, 256) == []


def test_long_lists_are_several_prompts() -> None:
    tags = [f"thing {number}" for number in range(10)]
    found = prompts(tags, length, 11)
    assert found[0] == "thing 0. thing 1. thing 2."
    assert [tag for prompt in found for tag in prompt.rstrip(".").split(". ")] == tags
    assert all(length(prompt) <= 11 for prompt in found)
    assert prompts(["one two three four five six", "a"], length, 5) == ["one two three four five six.", "a."]


@pytest.mark.parametrize(
    ("label", "tag"),
    [
        ("dog", "dog"),
        ("Traffic Light", "traffic light"),
        ("light", "traffic light"),
        ("hot dog", "hot dog"),
        ("dog hot", "hot dog"),  # both words fit "hot dog" and one fits "dog" wholly: the tag with more of them
        ("dog cat", "dog"),
        ("", ""),
        ("zebra", ""),
    ],
)
def test_a_label_means_a_tag(label: str, tag: str) -> None:
    assert tag_of(label, ["Dog", "cat", "traffic light", "hot dog"]) == tag


def test_signs_within_tags_do_no_harm() -> None:
    """Published code splits a label at "(" to cut its score off, and fails on a tag that holds one."""
    tags = ["crane (machine)", "t-shirt", "cat [toy]", "crane"]
    assert prompts(tags, length, 256) == ["crane machine. t-shirt. cat toy. crane."]
    for label, tag in (
        ("crane machine", "crane machine"),
        ("machine", "crane machine"),
        ("crane", "crane"),
        ("t - shirt", "t-shirt"),  # as the detector's tokenizer says it
        ("shirt", "t-shirt"),
        ("toy", "cat toy"),
    ):
        assert tag_of(label, tags) == tag
    assert prompts(["()", "("], length, 256) == []
    assert tag_of("-", ["-", "dog"]) == "-"
    assert tag_of("dog", ["-", "dog"]) == "dog"


def test_no_tags() -> None:
    assert tag_of("dog", []) == tag_of("dog", ["", "."]) == ""
    assert clean("  A.B |  C? ") == "a b c"
