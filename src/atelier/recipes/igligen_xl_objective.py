"""IGLIGEN-XL's encoder, objective and sampler: the parts of the recipe that need torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from atelier.data.batch_reader import column
from atelier.data.raw_example import RawExample
from atelier.models.grounded_unet import attach, freeze_base
from atelier.recipes.denoising import compute_dtype, load_scheduler
from atelier.recipes.grounded_objective import GroundedObjective
from atelier.recipes.grounding import pad_phrases, start_adapter
from atelier.recipes.igligen_xl import Recipe
from atelier.recipes.latents import LatentEncoder, half, parts_digest
from atelier.recipes.sdxl_text import SDXLText
from atelier.sampling.gligen_sdxl import StableDiffusionXLGLIGENPipeline
from atelier.training.protocol import Draws


def open_pipeline(base: Path, unet: UNet2DConditionModel | None = None) -> StableDiffusionXLGLIGENPipeline:
    """The sampler of a diffusers folder, with ``unet`` in the place of the folder's own."""
    text = SDXLText.load(base)
    pipeline = StableDiffusionXLGLIGENPipeline(
        vae=AutoencoderKL.from_pretrained(base / "vae").eval().requires_grad_(False),
        text_encoder=text.encoders[0],
        text_encoder_2=text.encoders[1],
        tokenizer=text.tokenizers[0],
        tokenizer_2=text.tokenizers[1],
        unet=unet if unet is not None else UNet2DConditionModel.from_pretrained(base / "unet").eval(),
        scheduler=load_scheduler(base),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Encoder:
    """``atelier.data.encoder.TakesLatents``: latents, prompt, pooled and phrase embeddings, all fp16."""

    def __init__(self, base: Path) -> None:
        self.latents = LatentEncoder(base)
        self.text = SDXLText.load(base, device=str(self.latents.device))
        self.digest = parts_digest(base, ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))

    @torch.no_grad()
    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """images uint8 [B, res, res, 3] → B samples of ``latent`` [4, h, w], ``prompt`` [T, D], ``pooled`` [P] and
        ``phrases`` [n, D], float16."""
        return self.encode_latents(half(self.latents(images)), examples)

    def latent_shape(self, res: int) -> tuple[int, ...]:
        """[4, res / 8, res / 8] for SDXL's autoencoder."""
        return self.latents.shape(res)

    @torch.no_grad()
    def encode_latents(self, latents: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """As ``encode``, of latents float16 [B, 4, h, w] that are scaled already."""
        prompt, pooled = self.text.prompts([example.caption for example in examples])
        names = [name for example in examples for name in example.phrases]
        unique = list(dict.fromkeys(names))
        encoded = dict(zip(unique, half(self.text.phrases(unique)), strict=True)) if unique else {}
        width = prompt.shape[-1]
        return [
            {
                "latent": latent,
                "prompt": states,
                "pooled": pool,
                "phrases": np.stack([encoded[name] for name in example.phrases])
                if example.phrases
                else np.zeros((0, width), np.float16),
            }
            for latent, states, pool, example in zip(latents, half(prompt), half(pooled), examples, strict=True)
        ]


class Objective(GroundedObjective):
    """``atelier.training.protocol.Objective``: which parameters train, and the loss of a batch."""

    def __init__(self, recipe: Recipe, base: Path) -> None:
        super().__init__(recipe, base)
        self._empty: tuple[Tensor, Tensor] | None = None

    def build(self) -> UNet2DConditionModel:
        """The frozen base with fresh layers in every transformer block."""
        unet = attach(UNet2DConditionModel.from_pretrained(self.base / "unet"))
        freeze_base(unet)
        start_adapter(unet, self.config)
        if self.config.empty_prompt == "encoded":
            self._empty = SDXLText.load(self.base).prompts([""])
        return unet

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Shard samples to a batch: latents [B, 4, h, w], prompt [B, T, D], pooled [B, P], boxes [B, N, 4],
        masks [B, N], phrases [B, N, D], time_ids [B, 6]; float32, boxes padded to ``max_boxes``."""

        def stack(name: str) -> Tensor:
            return torch.from_numpy(column(samples, name).astype(np.float32))

        return {
            "latents": stack("latent"),
            "prompt": stack("prompt"),
            "pooled": stack("pooled"),
            **pad_phrases(samples, self.config.max_boxes),
            # float32 holds sizes exactly; upstream's fp16 rounds those above 2048.
            "time_ids": torch.tensor([sample["json"]["time_ids"] for sample in samples], dtype=torch.float32),
        }

    def loss(self, model: nn.Module, batch: dict[str, Any], draws: Draws, progress: float) -> dict[str, Tensor]:
        """The denoising loss under jointly dropped conditions.

        With probability ``drop_boxes`` boxes and caption go together (what guidance needs as its other half); else
        the caption alone goes with probability ``drop_caption``.
        """
        config, x = self.config, batch["latents"]
        no_boxes = draws.chance(config.drop_boxes)
        no_caption = draws.chance(config.drop_caption) | no_boxes
        first, last = config.timestep_power
        timesteps = self.schedule.timesteps(draws, first + (last - first) * progress)
        noised, target = self.schedule.noised(x, draws.normal(x.shape[1:]), timesteps)
        prompt, pooled = self._captions(batch["prompt"], batch["pooled"], no_caption)
        masks = batch["masks"] * (~no_boxes)[:, None]
        dtype = compute_dtype(model)
        prediction = self.view.of(model)(
            noised.to(dtype),
            timesteps,
            prompt.to(dtype),
            # Sizes and boxes stay float32 until their sines are taken: bf16 holds no integer above 256 exactly.
            added_cond_kwargs={"text_embeds": pooled.to(dtype), "time_ids": batch["time_ids"]},
            cross_attention_kwargs={
                "gligen": {"boxes": batch["boxes"], "masks": masks, "positive_embeddings": batch["phrases"].to(dtype)}
            },
        ).sample
        return self.weighted_loss(prediction, target, batch)

    def _captions(self, prompt: Tensor, pooled: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        if self._empty is None:
            keep = (~dropped).to(prompt.dtype)
            return prompt * keep[:, None, None], pooled * keep[:, None]
        empty_prompt, empty_pooled = (e.to(prompt.device, prompt.dtype) for e in self._empty)
        return (
            torch.where(dropped[:, None, None], empty_prompt, prompt),
            torch.where(dropped[:, None], empty_pooled, pooled),
        )
