"""The twins' tokenizer and text encoders."""

import torch

from atelier.recipes.twins import make, text


def test_every_word_is_one_token_and_others_fall_back_to_letters() -> None:
    tokenizer = text.make_tokenizer(make.WORDS, make.TOKENS)
    for word in make.WORDS:
        assert len(tokenizer(word).input_ids) == 3
    longest = tokenizer("a three, a three, a three and a three").input_ids
    assert len(longest) <= make.TOKENS
    assert len(tokenizer("cab").input_ids) == 2 + len("cab")


def test_teaching_standardises_and_tells_words_apart() -> None:
    torch.manual_seed(0)
    tokenizer = text.make_tokenizer(make.WORDS, make.TOKENS)
    first, second = text.make_encoders(tokenizer, 32, seed=0)
    generator = torch.Generator().manual_seed(0)

    def examples(count: int) -> tuple[list[str], torch.Tensor]:
        labels = torch.randint(0, 10, (count,), generator=generator)
        return [f"a {make.WORDS[4 + int(label)]}" for label in labels], torch.eye(10)[labels]

    right = text.teach(tokenizer, (first, second), examples, classes=10, steps=150)
    assert right > 0.95
    captions, _ = examples(512)
    ids = text.tokenize(tokenizer, captions)
    with torch.no_grad():
        pooled, embeds = first(ids).pooler_output, second(ids).text_embeds
    assert pooled.mean(0).abs().max() < 0.3
    assert embeds.mean(0).abs().max() < 0.3
