"""Recurring runs: one of a name, as it was last asked for; a new one is there before the old one goes."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from atelier.errors import ConfigError
from atelier.orchestration import catalogue, connection, scheduled, submit
from atelier.orchestration import profile as profiles
from atelier.orchestration.kubeflow import Kubeflow, same_recurring
from atelier.orchestration.submit import Request
from atelier.schedules import Cron, move, zone

#: Kubeflow writes the time that a run was due in its place.
DUE = "[[ScheduledTime]]"
LARGEST_CONCURRENCY = 10


@dataclass(frozen=True)
class Timing:
    """When, and what happens to runs that were missed or that overlap."""

    cron: str
    timezone: str = "UTC"
    catch_up: bool = False
    concurrency: int = 1
    only_if_new: bool = True


def schedule(project: Path, request: Request, timing: Timing, out: TextIO = sys.stdout) -> int:
    """Has exactly one recurring run of a pipeline on the server, with these very settings.

    Raises:
        AtelierError: something is wrong; the recurring run that was there is as it was.
    """
    profile = profiles.load(project, request.profile)
    cron = Cron.parse(timing.cron)
    zone(timing.timezone)
    if not 1 <= timing.concurrency <= LARGEST_CONCURRENCY:
        raise ConfigError(f"CONCURRENCY={timing.concurrency}", f"from 1 to {LARGEST_CONCURRENCY}")
    moved = move(cron, timing.timezone, profile.cron_timezone)
    plain = catalogue.load(project, request.pipeline)
    prepared = submit.prepare(project, request, scheduled.wrap(plain, project))
    gate = {} if moved.exact else {"cron": timing.cron, "timezone": timing.timezone, "scheduled_at": DUE}
    parameters = {**prepared.parameters, "only_if_new": timing.only_if_new, **gate}
    for note in moved.notes:
        out.write(f"note: {note}\n")
    uploaded = submit.upload(prepared, out)
    kubeflow = uploaded.kubeflow
    wanted: dict[str, Any] = {
        "experiment": kubeflow.experiment(prepared.experiment),
        "cron": moved.cron.six(),
        "concurrency": timing.concurrency,
        "catch_up": timing.catch_up,
        "version": uploaded.version,
        "parameters": parameters,
        "root": profile.pipeline_root,
        "account": profile.service_account,
    }
    name = name_of(uploaded.compiled.name)
    there = kubeflow.recurring(name)
    kept = next((each for each in there if same_recurring(each, **wanted)), None)
    if kept is None:
        kept = kubeflow.create_recurring(
            name=name,
            description=f"{timing.cron} {timing.timezone}",
            pipeline=uploaded.pipeline,
            **wanted,
        )
        done = "replaced:" if there else "made:"
        # Asked again: of two calls at once each may have made one. Both then keep the newest, so that one is left.
        earlier = {each.recurring_run_id for each in there}
        there = kubeflow.recurring(name)
        kept = max([kept, *there], key=lambda each: (_made_at(each), each.recurring_run_id not in earlier, _id(each)))
        if not same_recurring(kept, **wanted):
            done = f"another call meanwhile asked for {kept.description}, which holds; this one asked for"
    else:
        done = "is as asked for already:"
    # After the new one is there; also what earlier calls left that were interrupted between the two.
    for each in there:
        if each.recurring_run_id != kept.recurring_run_id:
            kubeflow.delete_recurring(each.recurring_run_id)
    missed = "each missed time is made up for" if timing.catch_up else "missed times are not made up for"
    out.write(
        f"{name}: {done} {timing.cron} in {timing.timezone} (Kubeflow: {wanted['cron']} in {profile.cron_timezone}), "
        f"at most {timing.concurrency} at once, {missed}\n{kubeflow.server.link('recurring', kept.recurring_run_id)}\n"
    )
    return 0


def _made_at(record: Any) -> float:
    return float(record.created_at.timestamp()) if record.created_at else 0.0


def _id(record: Any) -> str:
    """Tells apart what was made in one second, for every caller alike."""
    return str(record.recurring_run_id)


def name_of(compiled: str) -> str:
    """The recurring run's name; it is what finds it again."""
    return compiled.removesuffix(scheduled.SUFFIX) + scheduled.SUFFIX


def unschedule(project: Path, request: Request, out: TextIO = sys.stdout) -> int:
    """Removes a pipeline's recurring runs; runs that have begun go on.

    Raises:
        AtelierError: no such pipeline, or the server does not answer.
    """
    dag = catalogue.load(project, request.pipeline)
    kubeflow = _connected(project, request)
    name = name_of(dag.graph.component_spec.name)
    there = kubeflow.recurring(name)
    for each in there:
        kubeflow.delete_recurring(each.recurring_run_id)
    out.write(f"{name}: {'removed' if there else 'there was none'}\n")
    return 0


def schedules(project: Path, request: Request) -> list[tuple[str, ...]]:
    """The recurring runs of the namespace as a table: name, schedule, Kubeflow's cron, state, last change, link.

    Raises:
        AtelierError: the server does not answer.
    """
    kubeflow = _connected(project, request)
    rows: list[tuple[str, ...]] = [("NAME", "SCHEDULE", "KUBEFLOW'S CRON", "STATE", "MADE", "PAGE")]
    for each in sorted(kubeflow.recurring(), key=lambda record: str(record.display_name)):
        trigger = each.trigger
        cron = trigger.cron_schedule.cron if trigger and trigger.cron_schedule else "(an interval)"
        made = f"{each.created_at:%Y-%m-%d %H:%M}" if each.created_at else ""
        rows.append(
            (
                str(each.display_name),
                str(each.description or ""),
                cron,
                str(each.status or "").lower(),
                made,
                kubeflow.server.link("recurring", each.recurring_run_id),
            )
        )
    return rows


def _connected(project: Path, request: Request) -> Kubeflow:
    profile = profiles.load(project, request.profile)
    where = connection.address(request.host, profile.host, request.token_file)
    return Kubeflow(connection.connect(where, request.namespace or profile.namespace))
