"""How much a forward pass holds in memory for the backward pass, counted on meta tensors: no weights, no arithmetic."""

from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch
from torch import Tensor


class _Attention(torch.autograd.Function):
    """Stands for the memory-efficient attention of a GPU, which holds its inputs and its output, not the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("only counted, never run")


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _Attention.apply(query, key, value)  # type: ignore[no-any-return]


def saved_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes that ``forward`` saves for its backward pass, each storage once, the parameters left out.

    Dao et al. 2022 (arXiv 2205.14135): attention saves queries, keys, values and its output.

    Args:
        forward: computes on meta tensors, with gradients.
        parameters: the model's.
    """
    known = {parameter.untyped_storage()._cdata for parameter in parameters}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in known:
            held[place] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", _attention),
        # DeepSpeed's ZeRO 3 puts its own function there, for good: it saves inputs that no gradient needs.
        mock.patch.object(torch.nn.functional, "linear", torch._C._nn.linear),
    ):
        result = forward()
    total = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    del result
    return total
