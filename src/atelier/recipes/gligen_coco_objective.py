"""GLIGEN on COCO: the recipe's encoder, objective and sampler, the parts that need torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from atelier.data.batch_reader import column
from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError, DataError
from atelier.models.grounded_unet import adopt, attach, freeze_base, is_adapter_key
from atelier.recipes.denoising import compute_dtype, load_scheduler
from atelier.recipes.gligen_coco import Recipe
from atelier.recipes.grounded_objective import GroundedObjective
from atelier.recipes.grounding import pad_phrases, start_adapter
from atelier.recipes.latents import LatentEncoder, half, parts_digest
from atelier.recipes.sd_text import SDText
from atelier.sampling.gligen_sd import StableDiffusionGLIGENPipeline
from atelier.training.protocol import Draws


def open_pipeline(base: Path, unet: UNet2DConditionModel | None = None) -> StableDiffusionGLIGENPipeline:
    """The sampler of a diffusers folder, with ``unet`` in the place of the folder's own."""
    text = SDText.load(base)
    pipeline = StableDiffusionGLIGENPipeline(
        vae=AutoencoderKL.from_pretrained(base / "vae").eval().requires_grad_(False),
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
        unet=unet if unet is not None else UNet2DConditionModel.from_pretrained(base / "unet").eval(),
        scheduler=load_scheduler(base),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Encoder:
    """``atelier.data.preprocess.Encoder``: latents, every caption's prompt embedding, phrase embeddings, all fp16."""

    def __init__(self, base: Path) -> None:
        self.latents = LatentEncoder(base)
        self.text = SDText.load(base, device=str(self.latents.device))
        self.digest = parts_digest(base, ("vae", "text_encoder", "tokenizer"))

    @torch.no_grad()
    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """images uint8 [B, res, res, 3] → B samples of ``latent`` [4, h, w], ``prompts`` [captions, T, D] and
        ``phrases`` [n, D], float16.

        Phrase embeddings that the source brings are used as they are.

        Raises:
            DataError: they are of another width than this text encoder's.
        """
        latents = half(self.latents(images))
        captions = half(self.text.prompts([caption for example in examples for caption in example.captions]))
        ends = np.cumsum([len(example.captions) for example in examples])[:-1]
        phrases = self._phrases(examples, captions.shape[-1])
        return [
            {"latent": latent, "prompts": prompts, "phrases": own}
            for latent, prompts, own in zip(latents, np.split(captions, ends), phrases, strict=True)
        ]

    def _phrases(self, examples: list[RawExample], width: int) -> list[np.ndarray]:
        own = [example for example in examples if example.phrase_embeddings is None]
        unique = list(dict.fromkeys(phrase for example in own for phrase in example.phrases))
        encoded = dict(zip(unique, half(self.text.phrases(unique)), strict=True)) if unique else {}
        result = []
        for example in examples:
            given = example.phrase_embeddings
            if given is None:
                rows = [encoded[phrase] for phrase in example.phrases]
                given = np.stack(rows) if rows else np.zeros((0, width), np.float16)
            elif given.shape != (len(example.phrases), width):
                raise DataError(
                    f"{example.key}: its phrase embeddings are {given.shape}, this base's are {width} wide",
                    "use the base whose text encoder made them, or plain COCO JSON",
                )
            result.append(given)
        return result


class Objective(GroundedObjective):
    """``atelier.training.protocol.Objective``: which parameters train, and the loss of a batch."""

    def __init__(self, recipe: Recipe, base: Path) -> None:
        super().__init__(recipe, base)
        self._empty = SDText.load(base).prompts([""])

    def build(self) -> UNet2DConditionModel:
        """The frozen base with the adapter that is trained, started as ``reset`` says.

        Raises:
            ConfigError: ``reset="upstream"`` and the base has no adapter.
        """
        unet = UNet2DConditionModel.from_pretrained(self.base / "unet")
        if self.config.reset == "full":
            attach(unet)  # in the place of whatever the base brings
            start_adapter(unet, self.config)
        else:
            reset_as_upstream(unet)
        freeze_base(unet)
        return unet

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Shard samples to a batch: latents [B, 4, h, w], prompts [B, C, T, D] (float16, padded to the most captions
        of any), captions [B] (how many), boxes [B, N, 4], masks [B, N], phrases [B, N, D]."""
        counts = [len(sample["prompts"]) for sample in samples]
        prompts = np.zeros((len(samples), max(counts), *samples[0]["prompts"].shape[1:]), np.float16)
        for row, sample in enumerate(samples):
            prompts[row, : counts[row]] = sample["prompts"]
        return {
            "latents": torch.from_numpy(column(samples, "latent").astype(np.float32)),
            "prompts": torch.from_numpy(prompts),
            "captions": torch.tensor(counts),
            **pad_phrases(samples, self.config.max_boxes),
        }

    def loss(self, model: nn.Module, batch: dict[str, Any], draws: Draws, progress: float) -> dict[str, Tensor]:
        """The denoising loss under one of each image's captions, boxes and caption dropped independently."""
        config, x = self.config, batch["latents"]
        no_boxes, no_caption = draws.chance(config.drop_boxes), draws.chance(config.drop_caption)
        chosen = (draws.uniform() * batch["captions"]).long()
        first, last = config.timestep_power
        timesteps = self.schedule.timesteps(draws, first + (last - first) * progress)
        noised, target = self.schedule.noised(x, draws.normal(x.shape[1:]), timesteps)
        dtype = compute_dtype(model)
        prompt = batch["prompts"][torch.arange(len(x), device=x.device), chosen].to(dtype)
        # A dropped caption is the encoded "", as SD samples without a prompt.
        prompt = torch.where(no_caption[:, None, None], self._empty.to(prompt.device, dtype), prompt)
        prediction = self.view.of(model)(
            noised.to(dtype),
            timesteps,
            prompt,
            # Boxes stay float32 until their sines are taken.
            cross_attention_kwargs={
                "gligen": {
                    "boxes": batch["boxes"],
                    "masks": batch["masks"] * (~no_boxes)[:, None],
                    "positive_embeddings": batch["phrases"].to(dtype),
                }
            },
        ).sample
        return self.weighted_loss(prediction, target, batch)


def reset_as_upstream(unet: UNet2DConditionModel) -> None:
    """Draws the Linear and LayerNorm layers of a gated UNet's adapter anew; gates and null features keep their values.

    So training starts from random fusers behind open gates, not from the base model.

    Raises:
        ConfigError: the UNet has no adapter.
    """
    if getattr(unet, "position_net", None) is None:
        raise ConfigError("reset=upstream on a base without GLIGEN layers", "use a gated base, or reset=full")
    adopt(unet)
    for name, module in unet.named_modules():
        if is_adapter_key(f"{name}.") and isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()
