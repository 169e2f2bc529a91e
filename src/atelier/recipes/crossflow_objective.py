"""CrossFlow's objective: the parts of the recipe that need torch.

The loss of a batch, from its draws: a text's latent is drawn from the text encoder's posterior, an image's from the
autoencoder's stored moments, the flow network learns the velocity between them at a random time. Beside that, a KL
term keeps the text's posterior near the normal distribution, and a contrastive term keeps texts apart by their images.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from atelier.data import bfloat16
from atelier.data.batch_reader import column
from atelier.errors import ConfigError
from atelier.models.crossflow.configs import CrossFlowConfig
from atelier.models.crossflow.flops import training_flops
from atelier.models.crossflow.model import CrossFlow, released_name
from atelier.models.crossflow.text_encoder import Posterior
from atelier.recipes import crossflow_losses as losses
from atelier.recipes.crossflow import moments_field
from atelier.recipes.crossflow_losses import Everyone, FlowLoss
from atelier.recipes.denoising import compute_dtype
from atelier.recipes.flow_matching import Interpolant, interpolant
from atelier.training.everyone import all_rows
from atelier.training.protocol import Draws

MAX_TEMPERATURE = 100.0
"""The greatest factor of the cosines, as CLIP clamps it."""
LOG_VAR_RANGE = (-10.0, 10.0)
_MOMENT_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Rules:
    """What a batch's loss goes by; the first four are the released models' rules in the place of ours.

    Attributes:
        local_partners: null samples swap images within the local batch, and nobody is null where fewer than two were
            drawn.
        raw_temperature: the contrastive temperature is the raw parameter, its negatives those of the local batch.
        free_log_variance: the log-variance has no bounds.
        null_teaches_text: a null sample's flow loss, whose image is another's, trains the text encoder too; ours trains
            the flow network alone by it.
        kl_weight: of the KL term.
        contrastive_weight: of the contrastive term; 1 in the released models.
        sigma_min: what is left of the text's latent at the image.
    """

    local_partners: bool = False
    raw_temperature: bool = False
    free_log_variance: bool = False
    null_teaches_text: bool = False
    kl_weight: float = losses.KL_WEIGHT
    contrastive_weight: float = 1.0
    sigma_min: float = losses.SIGMA_MIN

    @classmethod
    def released(cls) -> "Rules":
        """The released models' training."""
        return cls(local_partners=True, raw_temperature=True, free_log_variance=True, null_teaches_text=True)


class Terms(NamedTuple):
    """A batch's loss [B], its terms, and what they were computed from."""

    loss: Tensor
    flow: FlowLoss
    contrastive: Tensor
    kl: Tensor
    t: Tensor
    null: Tensor
    posterior: Posterior
    text_latent: Tensor
    image_latent: Tensor
    path: Interpolant


def terms(
    model: CrossFlow,
    *,
    text: Tensor,
    mask: Tensor,
    images: Tensor,
    image_latents: Tensor | None,
    logit_scale: Tensor | None,
    t: Tensor,
    noise: Tensor,
    null: Tensor,
    partner_draw: Tensor,
    rules: Rules,
    earlier: Tensor | None,
) -> Terms:
    """The loss of a batch whose draws are given.

    Args:
        text, mask: prompt embeddings [B, T, d] and their tokens [B, T].
        images: latents [B, C, H, W].
        image_latents, logit_scale: what the image tower gives, [B, C·H·W] and a scalar; None: no contrastive term.
        t: times [B]. noise: standard normal [B, C·H·W]. null: bool [B]. partner_draw: uniform [B].
        earlier: images of an earlier batch, for a null sample that is alone in all processes; None: there is none,
            then it stays conditional.
    """
    dtype = compute_dtype(model)
    posterior = model.context_encoder(text.to(dtype), mask)
    if not rules.free_log_variance:
        posterior = posterior.clamped(*LOG_VAR_RANGE)
    flat = posterior.sample(noise)
    text_latent = flat.unflatten(1, images.shape[1:])
    if rules.local_partners:
        targets, null = losses.swapped_among_nulls(images, null)
    else:
        targets, null = _partners(images, null, partner_draw, earlier)
    source = text_latent
    if not rules.null_teaches_text:
        source = torch.where(null[:, None, None, None], text_latent.detach(), text_latent)
    path = interpolant(source, targets, t, rules.sigma_min)
    flow = losses.flow_loss(model.flow, path, t, null, dtype)
    kl = losses.kl_loss(posterior)
    contrastive = flat.new_zeros(())
    if image_latents is not None and logit_scale is not None:
        contrastive = _contrastive(image_latents.float(), flat, logit_scale.float(), rules.raw_temperature)
    loss = flow.per_sample + rules.contrastive_weight * contrastive + rules.kl_weight * kl
    return Terms(loss, flow, contrastive, kl, t, null, posterior, text_latent, targets, path)


def _partners(images: Tensor, null: Tensor, draw: Tensor, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
    """Another sample's image for every null one, among all processes; of an earlier batch where there is no other."""
    with torch.no_grad():
        everyone = Everyone(*all_rows(images))
    if len(everyone.rows) > 1:
        return losses.others_images(images, everyone, null, draw), null
    if earlier is None:
        return images, torch.zeros_like(null)
    return torch.where(null[:, None, None, None], earlier[-1:].to(images), images), null


def _contrastive(images: Tensor, texts: Tensor, logit_scale: Tensor, raw: bool) -> Tensor:
    images, texts = nn.functional.normalize(images, dim=-1), nn.functional.normalize(texts, dim=-1)
    if raw:
        return losses.contrastive_loss(images, texts, Everyone(images, 0), Everyone(texts, 0), logit_scale)
    scale = logit_scale.clamp(max=math.log(MAX_TEMPERATURE)).exp()
    return losses.contrastive_loss(images, texts, Everyone(*all_rows(images)), Everyone(*all_rows(texts)), scale)


def latents_of(moments: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    """A fresh draw from an autoencoder's stored posterior: moments [B, 2C, H, W], noise [B, C, H, W], scaled."""
    mean, log_var = moments.chunk(2, dim=1)
    return scaling_factor * (mean + torch.exp(0.5 * log_var.clamp(*_MOMENT_RANGE)) * noise)


def decay_groups(model: nn.Module, decay_temperature: bool) -> list[dict[str, Any]]:
    """AdamW's groups: the norms' time constants are not decayed, and the contrastive temperature only where asked."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kept = name.endswith(("nodecay_weight", "nodecay_bias"))
            groups[not (kept or (name.endswith("logit_scale") and not decay_temperature))].append(parameter)
    return [
        {"params": groups[True], "name": "decayed"},
        {"params": groups[False], "name": "kept", "weight_decay": 0.0},
    ]


class Objective:
    """``atelier.training.protocol.Objective``: the whole model is trained.

    Args:
        recipe: a ``crossflow.Recipe``.
        base: a folder with the frozen autoencoder, language model and tokenizer.
    """

    def __init__(self, recipe: Any, base: Path) -> None:
        from diffusers import AutoencoderKL

        self.recipe, self.config, self.base = recipe, recipe.config, base
        self.networks: CrossFlowConfig = self.config.model()
        self.rules = Rules(
            local_partners=self.config.keeps("null_partners"),
            raw_temperature=self.config.keeps("temperature"),
            free_log_variance=self.config.keeps("log_variance"),
            null_teaches_text=self.config.keeps("null_text"),
            kl_weight=self.config.kl_weight,
            contrastive_weight=self.config.contrastive_weight,
        )
        own = float(AutoencoderKL.load_config(base / "vae")["scaling_factor"])
        self.scaling_factor = self.config.latent_scale or own
        self._earlier: Tensor | None = None
        self._pipeline: Any = None

    def build(self) -> CrossFlow:
        """A fresh model of the configuration."""
        model = CrossFlow(self.networks)
        if self.config.keeps("text_layers"):
            first, *others = model.context_encoder.layers
            for layer in others:
                layer.load_state_dict(first.state_dict())
        for stage in getattr(model.flow, "stages", [model.flow]):
            stage.gradient_checkpointing = self.config.gradient_checkpointing
        return model

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """See ``decay_groups``."""
        return decay_groups(model, self.config.keeps("temperature"))

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Shard samples to a batch, float32: moments [B, 2C, h, w], text [B, T, d], mask [B, T], and images
        [B, 3, H, W] in [-1, 1] where the image tower reads pixels.

        Moments are those of the model's resolution. A text is stored without its padding (the released rule: with
        it); ``tokens`` says how many of its rows are tokens.
        """
        width, tokens = self.networks.text["width"], self.networks.text.get("tokens", 77)
        text, mask = torch.zeros(len(samples), tokens, width), torch.zeros(len(samples), tokens)
        for row, sample in enumerate(samples):
            states = bfloat16.tensor(sample["text"])
            if states.shape[-1] != width:
                raise ConfigError(
                    f"sample {sample.get('key', row)} has a text of width {states.shape[-1]}, the model reads {width}",
                    f"use features of the language model {self.config.language_model!r}",
                )
            text[row, : len(states)] = states[:tokens]
            mask[row, : int(sample["tokens"].item())] = 1
        moments = bfloat16.tensor(column(samples, moments_field(samples[0], self.config.resolution))).float()
        channels, *sides = self.networks.latent_shape
        if list(moments.shape[1:]) != [2 * channels, *sides]:
            raise ConfigError(
                f"the samples' moments are {list(moments.shape[1:])}, the model's latents {self.networks.latent_shape}",
                "use features of the model's resolution",
            )
        batch = {"moments": moments, "text": text, "mask": mask}
        if self.config.image_tower == "pixels":
            pixels = torch.from_numpy(column(samples, "image"))
            batch["images"] = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        return batch

    def fields(self, known: Collection[str]) -> set[str]:
        """Those of the shards' fields that a training reads: one resolution's moments of several.

        Raises:
            ConfigError: there are none of the model's resolution.
        """
        pixels = {"image"} if self.config.image_tower == "pixels" else set()
        return {moments_field(known, self.config.resolution), "text", "tokens", *pixels}

    def loss(self, model: CrossFlow, batch: dict[str, Any], draws: Draws, progress: float) -> dict[str, Tensor]:
        """The sum of flow, contrastive and KL terms, and each of them."""
        shape = self.networks.latent_shape
        x = latents_of(batch["moments"], draws.normal(shape), self.scaling_factor)
        t = draws.normal().sigmoid()
        noise = draws.normal((prod(shape),))
        null, partner = draws.chance(self.config.null_share), draws.uniform()
        image_latents, logit_scale = None, None
        if self.config.image_tower != "none":
            seen = batch["images"] if self.config.image_tower == "pixels" else x
            image_latents, logit_scale = model.image_latents(seen.to(compute_dtype(model)))
        found = terms(
            model,
            text=batch["text"],
            mask=batch["mask"],
            images=x,
            image_latents=image_latents,
            logit_scale=logit_scale,
            t=t,
            noise=noise,
            null=null,
            partner_draw=partner,
            rules=self.rules,
            earlier=self._earlier,
        )
        self._earlier = x.detach()
        return {
            "loss": found.loss.mean(),
            "flow_loss": found.flow.per_sample.mean(),
            "contrastive_loss": found.contrastive,
            "kl_loss": found.kl.mean(),
            "null_share": found.null.float().mean(),
        }

    def trainable_state(self, model: CrossFlow) -> dict[str, Tensor]:
        """Every trained parameter by its name in a released checkpoint."""
        named = ((released_name(name), p.detach()) for name, p in model.named_parameters() if p.requires_grad)
        return dict(named)

    def gauges(self, model: CrossFlow) -> dict[str, float]:
        """The contrastive temperature, which collapses before anything else does."""
        return {} if model.open_clip is None else {"logit_scale": float(model.open_clip.logit_scale.detach().float())}

    def preview(self, model: CrossFlow, step: int) -> list[Image.Image] | None:
        """The recipe's held-out prompts, always the same ones from the same seeds."""
        if self._pipeline is None:
            self._pipeline = self.recipe.pipeline(self.base, model).to(next(model.parameters()).device)
        training = model.training
        model.eval()
        try:
            layouts = self.recipe.layouts(self.config.preview_count, seed=1)
            images: list[Image.Image] = self.recipe.sample(
                self._pipeline, layouts, self.config.preview_steps, self.config.guidance
            )
            return images
        finally:
            model.train(training)

    def flops_per_sample(self) -> float:
        """See ``models.crossflow.flops``."""
        return training_flops(self.networks)
