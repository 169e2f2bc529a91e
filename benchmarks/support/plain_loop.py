"""A training step as the published GLIGEN-on-SDXL script takes it, so that ours has something to be compared with.

Written from what is known of that script, not from its code: captions and phrases go through both text encoders at
every step, the phrases image by image; the gradient norm is taken over every parameter of the UNet; AdamW is torch's
default, neither fused nor over one flat tensor; the loss is read from the device at every step.
"""

from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from benchmarks.support.grounded_sdxl import RESOLUTION, SLOTS, TextEncoders


class PlainStep:
    """Trains a grounded UNet's open parameters, a batch a call.

    Args:
        unet: fusers and position net require gradients, the rest does not.
        text: the encoders, frozen.
    """

    def __init__(self, unet: UNet2DConditionModel, text: TextEncoders, scheduler: DDPMScheduler, lr: float) -> None:
        self.unet, self.text, self.scheduler = unet, text, scheduler
        self.optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
        self.rates = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)

    def __call__(self, samples: list[dict[str, Any]]) -> float:
        """One update; returns the loss."""
        latents = torch.from_numpy(np.stack([sample["latent"] for sample in samples])).float()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.scheduler.config["num_train_timesteps"], (len(samples),))
        loss = self.loss(samples, latents, noise, timesteps)
        value = loss.repeat(len(samples)).mean().item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.rates.step()
        self.optimizer.zero_grad()
        return value

    def loss(self, samples: list[dict[str, Any]], latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The denoising loss."""
        noised = self.scheduler.add_noise(latents, noise, timesteps)
        prompt, pooled = self.text.prompts(torch.from_numpy(np.stack([sample["caption"] for sample in samples])))
        boxes = torch.zeros(len(samples), SLOTS, 4)
        masks = torch.zeros(len(samples), SLOTS)
        phrases = torch.zeros(len(samples), SLOTS, prompt.shape[-1])
        for row, sample in enumerate(samples):
            used = len(sample["boxes"])
            boxes[row, :used] = torch.from_numpy(sample["boxes"])
            masks[row, :used] = 1
            phrases[row, :used] = self.text.phrases(torch.from_numpy(sample["phrases"]))
        ids = torch.tensor([[*sample["size"], 0, 0, RESOLUTION, RESOLUTION] for sample in samples])
        prediction = self.unet(
            noised,
            timesteps,
            prompt,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids.float()},
            cross_attention_kwargs={"gligen": {"boxes": boxes, "masks": masks, "positive_embeddings": phrases}},
        ).sample
        return F.mse_loss(prediction.float(), noise.float(), reduction="mean")
