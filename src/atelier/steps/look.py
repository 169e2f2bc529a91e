"""Look: whether a scheduled run has anything to do; before data are fetched and GPUs are asked for."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from atelier.schedules import Cron, zone
from atelier.steps.lineage import source_of
from atelier.steps.runtime import uncached
from atelier.steps.source import where
from atelier.storage.manifest import Manifest
from atelier.tracking import registry

GO, STOP = "go", "stop"


def verdict(
    *,
    addresses: dict[str, str],
    images: int,
    seed: int,
    name: str,
    only_if_new: bool = True,
    cron: str = "",
    timezone: str = "",
    scheduled_at: str = "",
) -> tuple[str, str]:
    """Whether to go on, and why, in a sentence.

    Args:
        addresses: what the data are given by (tars, pictures …), by name; empty ones count as not given.
        images, seed: what canvases are drawn by where there are no addresses.
        name: the registered model; its champion, and the version after it, are what the data are compared with.
        only_if_new: False: goes on whatever the data are.
        cron, timezone: the schedule as a person wrote it, where Kubeflow starts more often than that; "": always due.
        scheduled_at: when this run was due, in UTC, ``YYYYMMDDhhmmss``; anything else is now.

    Raises:
        AtelierError: the data cannot be listed, MLflow or the store does not answer.
    """
    if cron:
        moments = [moment.astimezone(zone(timezone)) for moment in _due(scheduled_at)]
        if not any(Cron.parse(cron).matches(moment) and not moment.fold for moment in moments):
            return STOP, f"{moments[0]:%Y-%m-%d %H:%M} in {timezone} is no time of {cron!r}"
    if not only_if_new:
        return GO, "the data were not looked at (only_if_new is false)"
    given = {key: uri for key, uri in addresses.items() if uri}
    wanted = where(given) if given else {"images": images, "seed": seed}
    compared = []
    for alias in (registry.CHAMPION, registry.CHALLENGER):
        found = registry.find(f"models:/{name}@{alias}")
        if found is None:
            continue
        source = source_of(found.source)
        if source is not None and _same(source, given, wanted):
            return STOP, f"nothing new: {found.uri} ({alias}) was trained on these data ({source.digest})"
        compared.append(f"{found.uri} ({alias})")
    if not compared:
        return GO, f"{name} has no champion yet"
    return GO, f"the data are not those of {' or '.join(compared)}"


def _same(source: Manifest, given: dict[str, str], wanted: dict[str, Any]) -> bool:
    """Whether a model's source is what would be taken now."""
    if given:
        return source.kind == "source-uris" and {k: v for k, v in source.metadata.items() if k != "form"} == wanted
    params = source.made_by.get("params", {})
    return source.kind != "source-uris" and all(params.get(key) == value for key, value in wanted.items())


def _due(text: str) -> list[datetime]:
    """When the run was due; without a time that can be read, every minute of the hour before now."""
    try:
        return [datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)]
    except ValueError:
        return [datetime.now(UTC) - timedelta(minutes=minutes) for minutes in range(60)]


def run(
    *,
    said: str,
    addresses: dict[str, str],
    images: int,
    seed: int,
    name: str,
    only_if_new: bool,
    cron: str,
    timezone: str,
    scheduled_at: str,
) -> str:
    """``verdict`` as a step: ledger, log and a page; not cached, since what it looks at changes.

    Args:
        said: the file of the page for a person (Markdown).

    Returns:
        ``go`` or ``stop``.
    """
    with uncached("look") as record:
        found, why = verdict(
            addresses=addresses,
            images=images,
            seed=seed,
            name=name,
            only_if_new=only_if_new,
            cron=cron,
            timezone=timezone,
            scheduled_at=scheduled_at,
        )
        print(f"look: {found}: {why}", flush=True)
        Path(said).parent.mkdir(parents=True, exist_ok=True)
        Path(said).write_text(f"**{found}**: {why}\n", encoding="utf-8")
        record.update(output={"kind": "verdict", "metadata": {"verdict": found, "why": why}})
    return found
