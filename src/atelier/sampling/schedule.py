"""How strongly each denoising step is grounded (GLIGEN's scheduled sampling, arXiv 2301.07093, section 4)."""

from atelier.errors import ConfigError


def grounding_scales(steps: int, beta: float, decay: float = 0.0) -> list[float]:
    """The fusers' strength at each step, first to last.

    The original's ``alpha_type`` [stage 1, decay, rest] is (``beta``, ``decay``, what is left): 1 for the first
    ``int(beta * steps)`` steps, then over the next ``int(decay * steps)`` in equal parts down to 0, then 0.
    diffusers knows the first part only.

    Args:
        steps: how many steps the run has.
        beta: share of the steps, from the first, at full strength.
        decay: share of the steps, after those, over which the strength falls.

    Returns:
        ``steps`` numbers in [0, 1]. At 0 the fusers are skipped, not multiplied.

    Raises:
        ConfigError: a share below 0, or both together above 1.
    """
    for name, share in (("gligen_scheduled_sampling_beta", beta), ("gligen_decay", decay)):
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} is {share}", "it is a share of the steps: use 0 to 1")
    if beta + decay > 1 + 1e-9:
        raise ConfigError(
            f"gligen_scheduled_sampling_beta {beta} and gligen_decay {decay} are more than all steps",
            "lower one: together they are at most 1",
        )
    full, falling = int(beta * steps), int(decay * steps)
    fall = [(falling - 1 - step) / falling for step in range(falling)]
    return ([1.0] * full + fall + [0.0] * steps)[:steps]
