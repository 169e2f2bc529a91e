"""A tiny chat model that sees pictures: a LLaVA-NeXT."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tests.annotate.tiny import WORDS

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<unk>"]
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant {% endif %}"
)
SIDE, PATCH = 32, 8


def chat(folder: Path) -> Path:
    """Its pictures have as many tokens as their shape asks for, so prompts are of several lengths."""
    torch.manual_seed(7)
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, "user", "assistant", "what", "is", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=[AddedToken("<image>", special=True)],
    )  # fmt: skip
    pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
            patch_size=PATCH, initializer_range=0.5,
        ).to_dict(),
        text_config=LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, initializer_range=0.5, max_position_embeddings=512, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        ).to_dict(),
        image_grid_pinpoints=pinpoints,
        image_token_index=3,
        image_token_id=3,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=pinpoints
    )
    LlavaNextProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder
