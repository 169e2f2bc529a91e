"""LoRA of every linear layer of a tiny FLUX, of mixed ranks and scales, and what it does to the model."""

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from atelier.convert.lora import Delta, Lora
from atelier.convert.weights import of_state
from tests.models.flux.tiny import tiny_flux

OUTER = ("x_embedder", "context_embedder", "proj_out", "norm_out.linear", "time_text_embed.guidance_embedder.linear_2")


def delta(shape: tuple[int, int], rank: int, alpha: float, seed: int = 0) -> Delta:
    """A layer's change: small numbers of few bits, so that sums and powers of two are exact."""
    generator = torch.Generator().manual_seed(seed)
    factors = of_state(
        {
            "down": torch.randint(-8, 8, (rank, shape[1]), generator=generator) / 16.0,
            "up": torch.randint(-8, 8, (shape[0], rank), generator=generator) / 16.0,
        }
    )
    return Delta(factors["down"], factors["up"], alpha)


def whole_lora(mixed: bool = True) -> Lora:
    """Of all 50 linear layers: rank 4 and alpha 8, where ``mixed`` some of rank 2 and some of alpha 1."""
    lora: Lora = {}
    layers = [(name, part) for name, part in tiny_flux().named_modules() if isinstance(part, nn.Linear)]
    for number, (name, part) in enumerate(layers):
        rank, alpha = (2 if number % 3 == 0 else 4, 1.0 if number % 4 == 0 else 8.0) if mixed else (4, 8.0)
        lora[name] = delta((part.out_features, part.in_features), rank, alpha, number)
    return dict(sorted(lora.items()))


def same_change(ours: Lora, theirs: Lora) -> bool:
    """The same layers, the same ΔW to the bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n].dense(), theirs[n].dense()) for n in theirs)


def with_header(tensors: dict[str, Tensor], path: str, header: dict[str, str] | None = None) -> None:
    """A safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=header)
