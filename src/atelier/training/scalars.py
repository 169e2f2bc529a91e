"""Parameters of no dimension (a gate's alpha), on which DeepSpeed 0.19.8 fails.

It broadcasts each parameter as bytes, and such a tensor cannot be viewed so; without ZeRO its gradient clipping fails
on them too (see ``engine``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from atelier.training.runtime import Ranks


@contextmanager
def scalars_set_aside(model: torch.nn.Module, ranks: Ranks) -> Iterator[None]:
    """Around ``deepspeed.initialize``: broadcasts these parameters, and has DeepSpeed leave them out of its own.

    ZeRO 0 to 2 skip what carries the mark of DeepSpeed's OptimizedLinear; ZeRO 3 broadcasts where it partitions, which
    is done here for them.
    """
    from deepspeed.runtime.zero.partition_parameters import Init

    scalars = [parameter for parameter in model.parameters() if parameter.dim() == 0]
    for parameter in scalars:
        if ranks.world > 1:
            parameter.data = parameter.data.to(ranks.device)
            distributed.broadcast(parameter.data, src=0)
        parameter.ds_optim_param = True  # type: ignore[attr-defined]
    original = Init._zero_init_param

    def zero_init_param(init: Any, parameter: Any) -> None:
        if parameter.dim():
            original(init, parameter)
            return
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()

    Init._zero_init_param = zero_init_param
    try:
        yield
    finally:
        Init._zero_init_param = original
        for parameter in scalars:
            del parameter.ds_optim_param  # type: ignore[attr-defined]
