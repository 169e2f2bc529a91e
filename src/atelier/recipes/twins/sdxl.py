"""An SDXL in miniature: the same kinds of parts, sized so that two cores train it in minutes.

Two text encoders side by side, pooled text and time ids through SDXL's ``text_time`` embedding, attention at the two
lower levels, an autoencoder with f = 4. Unlike SDXL it predicts v with zero terminal SNR: a tiny model that never
sees pure noise in training cannot start from it.
"""

from diffusers import DDIMScheduler, UNet2DConditionModel

TEXT_WIDTH = 64
"""Channels of each of the two text encoders."""


def make_unet(latent_size: int) -> UNet2DConditionModel:
    """A fresh UNet of SDXL's shape."""
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4, 6),  # diffusers' historic name: the number of heads
        norm_num_groups=8,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=6 * 16 + TEXT_WIDTH,
    )


def make_scheduler() -> DDIMScheduler:
    """SDXL's betas, rescaled to zero terminal SNR (arXiv 2305.08891), v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
