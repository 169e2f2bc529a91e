"""Tiny models of the annotators' kinds, randomly initialised, saved in folders as the hub's are."""

import functools
import json
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    OPTConfig,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.grounding_dino import GroundingDinoProcessor
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil

from atelier.data import digits
from atelier.recipes.twins import assets

WORDS = sorted({word for label in range(10) for word in digits.phrase(label).split()} | {"photo", "of", "a", "dog"})
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def detector(folder: Path) -> Path:
    """A Grounding DINO of 0.1 million parameters."""
    torch.manual_seed(1)
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, ".", *WORDS])}
    tokenizer = BertTokenizer(vocab=vocabulary)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=2,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        d_model=32,  # its group norms have 32 groups
        num_queries=12,
        encoder_layers=1,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        num_feature_levels=4,
        max_text_len=64,
        init_std=0.5,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def captioner(folder: Path) -> Path:
    """A BLIP-2 with an OPT of one layer."""
    torch.manual_seed(2)
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
            patch_size=8, initializer_range=0.5,
        ),
        qformer_config=Blip2QFormerConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, cross_attention_frequency=1, initializer_range=0.5,
        ),
        text_config=OPTConfig(
            vocab_size=len(vocabulary), hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=1, ffn_dim=32,
            num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            init_std=0.5,
        ),
        num_query_tokens=4,
        image_token_index=vocabulary["<image>"],
        initializer_range=0.5,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def clip(folder: Path, width: int = 32) -> Path:
    """A CLIP with the twins' tokenizer."""
    torch.manual_seed(3)
    tokenizer = CLIPTokenizer.from_pretrained(assets.shipped("sdxl_twin") / "tokenizer")
    text = json.loads((assets.shipped("sdxl_twin") / "text_encoder" / "config.json").read_text())
    kept = {
        name: text[name]
        for name in ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    }
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2, **kept
        ).to_dict(),
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32,
            patch_size=8,
        ).to_dict(),
        projection_dim=16,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """A SigLIP with the twins' tokenizer."""
    from transformers import SiglipTextConfig, SiglipVisionConfig
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    torch.manual_seed(4)
    tokenizer = CLIPTokenizer.from_pretrained(assets.shipped("sdxl_twin") / "tokenizer")
    config = SiglipConfig(
        text_config=SiglipTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=16, projection_size=32,
        ).to_dict(),
        vision_config=SiglipVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32,
            patch_size=8,
        ).to_dict(),
    )  # fmt: skip
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def folders() -> dict[str, str]:
    """Every role's folder, made once a test session."""
    root = Path(tempfile.mkdtemp(prefix="atelier-tiny-"))
    return {
        "detector": str(detector(root / "detector")),
        "captioner": str(captioner(root / "captioner")),
        "phrase_encoder": str(clip(root / "clip")),
        "tagger": str(root / "clip"),
    }
