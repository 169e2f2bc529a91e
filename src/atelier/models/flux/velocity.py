"""One evaluation of FLUX on latents as they are: packing, places, the call, unpacking."""

from torch import Tensor, nn

from atelier.models.flux.latents import image_ids, pack, text_ids, unpack


def velocity(
    transformer: nn.Module, noisy: Tensor, sigmas: Tensor, text: Tensor, pooled: Tensor, guidance: Tensor | None
) -> Tensor:
    """The predicted velocity ε − x₀, like ``noisy`` [B, C, H, W].

    Args:
        transformer: diffusers' ``FluxTransformer2DModel``, with or without LoRA.
        noisy: latents at noise levels ``sigmas`` [B], which lie in [0, 1] (the model multiplies them by 1000).
        text: T5's states [B, L, joint_attention_dim]; pooled: CLIP's vector [B, pooled_projection_dim].
        guidance: the distilled guidance's scale [B]; None for a model without (schnell).
    """
    height, width = noisy.shape[-2:]
    found = transformer(
        hidden_states=pack(noisy),
        timestep=sigmas,
        guidance=guidance,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        img_ids=image_ids(height, width, noisy.device),
        txt_ids=text_ids(text.shape[1], text.device),
        return_dict=False,
    )[0]
    return unpack(found, height, width)
