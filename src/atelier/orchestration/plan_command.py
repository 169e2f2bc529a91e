"""``atelier plan``: its options."""

import argparse
import json

from atelier.errors import ConfigError
from atelier.orchestration.command_line import Command, given


def add_command(command: Command, default_pipeline: str) -> None:
    """Adds the command.

    Args:
        command: (name, function, help) → its parser.
    """
    plan = command("plan", _plan, "what a run would do and cost: steps, memory, ZeRO stage, hours; spends nothing")
    plan.add_argument("pipeline", nargs="?", default=given("PIPELINE") or default_pipeline)
    plan.add_argument("--profile", default=given("PROFILE"), help="of profiles/, or a file's path; default: paper")
    plan.add_argument("--artifacts", default=given("ARTIFACTS"), metavar="URI", help="where outputs go")
    plan.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; many times")
    plan.add_argument("--nodes", default=given("NODES"), help="in the place of the profile's")
    plan.add_argument("--gpus-per-node", default=given("GPUS_PER_NODE"), help="in the place of the profile's")
    plan.add_argument("--gpu", default=given("GPU"), help="h200, h100, a100-80g …; in the place of the profile's")
    plan.add_argument("--price", default=given("PRICE"), help="of a GPU-hour")
    plan.add_argument("--mfu", default=given("MFU"), help="share of the GPU's peak that is assumed")
    plan.add_argument("--json", action="store_true", help="for programs")


def _plan(arguments: argparse.Namespace) -> int:
    from atelier.orchestration import params, plan_text, profile
    from atelier.orchestration.plan import MFU, Options, make
    from atelier.orchestration.project import find_project

    project = find_project()
    price, mfu = _number(arguments.price, "PRICE"), _number(arguments.mfu, "MFU")
    if mfu is not None and not 0 < mfu <= 1:
        raise ConfigError(f"MFU={arguments.mfu} is no share", "give a number above 0 and up to 1, e.g. 0.35")
    plan = make(
        project,
        arguments.pipeline,
        params.parse([*params.split(given("SET")), *arguments.set]),
        profile.load(project, arguments.profile),
        Options(
            nodes=_count(arguments.nodes, "NODES"),
            gpus_per_node=_count(arguments.gpus_per_node, "GPUS_PER_NODE"),
            gpu=arguments.gpu or None,
            price=price,
            mfu=MFU if mfu is None else mfu,
        ),
        arguments.artifacts,
    )
    print(json.dumps(plan_text.record(plan), indent=1) if arguments.json else "\n".join(plan_text.lines(plan)))
    plan.refuse()
    return 0


def _count(text: str, name: str) -> int | None:
    if not text:
        return None
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{name}={text} is no number of them", f"give 1 or more, e.g. {name}=2")
    return int(text)


def _number(text: str, name: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name}={text} is no amount", f"give a number, e.g. {name}=4.0")
    return value
