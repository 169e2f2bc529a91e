"""Shallow copies of a module with other parts in some places, for one who may not change a module that others use."""

import copy
from collections.abc import Mapping

from torch import nn


def overlaid(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A shallow copy of a module with other parts at some of its paths; every weight and other part is the module's."""
    made = copy.copy(module)
    children = dict(module._modules)
    for child in {name.partition(".")[0] for name in parts}:
        own = {rest: part for name, part in parts.items() for head, _, rest in [name.partition(".")] if head == child}
        inner = children[child]
        assert inner is not None
        children[child] = own[""] if "" in own else overlaid(inner, own)
    made._modules = children
    return made


def is_watched(module: nn.Module) -> bool:
    """Whether somebody hooks into a forward pass (ZeRO 3, offloading, a profiler), who knows the parts as they are."""
    return any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part)  # accelerate's
        for part in module.modules()
    )
