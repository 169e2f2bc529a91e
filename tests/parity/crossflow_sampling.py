"""CrossFlow's sampling: the kinds ``ode_*`` and ``arith``."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from atelier.sampling.flow_solvers import Step, solve
from atelier.sampling.guided_flow import GuidedFlow
from atelier.sampling.latent_arithmetic import combine, interpolate
from tests.parity.case import Case
from tests.parity.crossflow import whole_model


@torch.no_grad()
def ode(case: Case) -> dict[str, Tensor]:
    """Upstream's Euler with guidance, from the text to the end, and what it passes."""
    model, given = whole_model(case), case.inputs
    posterior = model.context_encoder(given["text"], given["mask"])
    start = posterior.sample(given["eps"]).unflatten(1, model.flow.latent_shape)
    seen: list[Step] = []
    velocity = GuidedFlow(model.flow, case.spec["guidance_scale"])
    end = solve(velocity, start, case.spec["steps"], "euler_released", seen.append)
    return {
        "mu": posterior.mean,
        "log_var": posterior.log_var,
        "x_start": start,
        "times": torch.tensor([step.time for step in seen]),
        "guided_velocity": torch.stack([step.velocity for step in seen]),
        "trajectory": torch.stack([start, *(step.x for step in seen)]),
        "x_end": end,
    }


def arith(case: Case) -> dict[str, Tensor]:
    """Sums of prompts in the last row, and the line between the first row and the last."""
    shape = tuple(case.spec["latent_shape"])
    result = {}
    for name, rows in case.inputs.items():
        if name == "interp":
            result[name] = interpolate(rows[0], rows[-1], len(rows)).unflatten(1, shape)
            continue
        signs = re.findall("add|sub", name)
        others = dict.fromkeys(("add", "sub"), ())
        others |= {sign: (rows[place + 1],) for place, sign in enumerate(signs)}
        made = combine(rows[0], others["add"], others["sub"])
        result[name] = torch.cat([rows[:-1], made[None]]).unflatten(1, shape)
    return result


KINDS: dict[str, Callable[[Case], dict[str, Tensor]]] = {"ode_dit": ode, "ode_dimr": ode, "arith": arith}
