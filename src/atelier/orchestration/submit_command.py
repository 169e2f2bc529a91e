"""``atelier submit``, ``stop``, ``schedule``, ``schedules``, ``unschedule``: their options; the work is elsewhere."""

import argparse
from typing import TYPE_CHECKING

from atelier.errors import ConfigError
from atelier.orchestration.command_line import Command, given, table, true

if TYPE_CHECKING:
    from atelier.orchestration.submit import Request


def add_commands(command: Command, default_pipeline: str) -> None:
    """Adds the five commands.

    Args:
        command: (name, function, help) → its parser.
    """
    submit = command("submit", _submit, "run a pipeline on Kubeflow; the same one that runs already is shown")
    _pipeline(submit, default_pipeline)
    _what(submit)
    _server(submit)
    submit.add_argument("--wait", action="store_true", default=true("WAIT"), help="follow the run to its end")
    submit.add_argument(
        "--again", action="store_true", default=true("AGAIN"), help="start one even where the very same is running"
    )
    submit.add_argument("--name", default=given("NAME"), help="the run's name")

    stop = command("stop", _stop, "end a run on Kubeflow; its steps save first")
    stop.add_argument("run", nargs="?", default=given("RUN"), help="the run's id, as submit prints it")
    _profile(stop)
    _server(stop)

    schedule = command("schedule", _schedule, "run a pipeline on Kubeflow again and again, whenever its data are new")
    _pipeline(schedule, default_pipeline)
    schedule.add_argument("--cron", default=given("CRON"), metavar="'0 3 * * 1'", help="minute hour day month weekday")
    schedule.add_argument("--timezone", default=given("TZ") or "UTC", metavar="ZONE", help="e.g. Europe/Berlin (UTC)")
    schedule.add_argument(
        "--catch-up", action="store_true", default=true("CATCHUP"), help="make up for each missed time"
    )
    schedule.add_argument("--concurrency", default=given("CONCURRENCY") or "1", help="runs at once (1)")
    schedule.add_argument(
        "--always", action="store_true", default=true("ALWAYS"), help="train also where the data are the champion's"
    )
    _what(schedule)
    _server(schedule)

    schedules = command("schedules", _schedules, "the recurring runs on Kubeflow")
    _profile(schedules)
    _server(schedules)

    unschedule = command("unschedule", _unschedule, "remove a pipeline's recurring run")
    unschedule.add_argument("pipeline", nargs="?", default=given("PIPELINE"))
    _profile(unschedule)
    _server(unschedule)


def _pipeline(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("pipeline", nargs="?", default=given("PIPELINE") or default)


def _profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", default=given("PROFILE"), help="of profiles/, or the path of a file of your own (paper)"
    )


def _what(parser: argparse.ArgumentParser) -> None:
    _profile(parser)
    parser.add_argument("--artifacts", default=given("ARTIFACTS"), metavar="URI", help="where outputs go")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; many times")
    parser.add_argument("--experiment", default=given("EXPERIMENT"), help="Kubeflow's experiment")
    parser.add_argument(
        "--image-digests", default=given("IMAGE_DIGESTS"), metavar="FILE", help="what `make images` wrote"
    )
    parser.add_argument(
        "--allow-tags", action="store_true", default=true("ALLOW_TAGS"), help="images by tag, not by digest"
    )
    parser.add_argument(
        "--no-cluster-check",
        action="store_true",
        default=true("NO_CLUSTER_CHECK"),
        help="do not look at the kubeconfig's cluster, where Kubeflow runs in another one",
    )


def _server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default=given("HOST"), metavar="URL", help="Kubeflow Pipelines (KF_PIPELINES_ENDPOINT)"
    )
    parser.add_argument("--namespace", default=given("NAMESPACE"), help="Kubernetes namespace; default: the profile's")
    parser.add_argument(
        "--token-file",
        default=given("TOKEN_FILE"),
        metavar="FILE",
        help="a file with the token (or KF_PIPELINES_TOKEN)",
    )


def _request(arguments: argparse.Namespace) -> "Request":
    from atelier.orchestration import params
    from atelier.orchestration.submit import Request

    options = vars(arguments)
    known = {name: options[name] for name in Request.__dataclass_fields__ if name in options}
    words = [*params.split(given("SET")), *options["set"]] if "set" in options else []
    return Request(**{"pipeline": "", **known, "given": params.parse(words)})


def _submit(arguments: argparse.Namespace) -> int:
    from atelier.orchestration.project import find_project
    from atelier.orchestration.submit import submit

    return submit(find_project(), _request(arguments), again=arguments.again, wait=arguments.wait)


def _stop(arguments: argparse.Namespace) -> int:
    from atelier.orchestration.project import find_project
    from atelier.orchestration.submit import stop

    return stop(find_project(), arguments.run, _request(arguments))


def _schedule(arguments: argparse.Namespace) -> int:
    from atelier.orchestration.project import find_project
    from atelier.orchestration.schedule import Timing, schedule

    if not arguments.cron:
        raise ConfigError("no CRON: when is it to run?", 'minute hour day month weekday, e.g. CRON="0 3 * * 1"')
    if not str(arguments.concurrency).isdecimal():
        raise ConfigError(f"CONCURRENCY={arguments.concurrency!r} is no number", "e.g. CONCURRENCY=1")
    timing = Timing(
        arguments.cron, arguments.timezone, arguments.catch_up, int(arguments.concurrency), not arguments.always
    )
    return schedule(find_project(), _request(arguments), timing)


def _schedules(arguments: argparse.Namespace) -> int:
    from atelier.orchestration.project import find_project
    from atelier.orchestration.schedule import schedules

    print("\n".join(table(schedules(find_project(), _request(arguments)))))
    return 0


def _unschedule(arguments: argparse.Namespace) -> int:
    from atelier.orchestration.project import find_project
    from atelier.orchestration.schedule import unschedule

    if not arguments.pipeline:
        raise ConfigError("no PIPELINE: which recurring run is to go?", "`make schedules` lists them")
    return unschedule(find_project(), _request(arguments))
