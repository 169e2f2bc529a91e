"""Schedules on the test server: one of a name, replaced without a gap, refused where it cannot be meant."""

import io
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import AtelierError, ConfigError, ServiceError
from atelier.orchestration import catalogue, schedule, scheduled
from atelier.orchestration.kubeflow import Kubeflow
from atelier.orchestration.schedule import Timing
from atelier.orchestration.submit import Request
from tests.documents import documents
from tests.orchestration import kfp_server
from tests.orchestration.asking import PROJECT, ask


def made(request: Request, cron: str = "0 3 * * 1", **changes: Any) -> str:
    out = io.StringIO()
    assert schedule.schedule(PROJECT, request, Timing(cron, **changes), out) == 0
    return out.getvalue()


def test_one_recurring_run_whatever_is_pressed_how_often(server: kfp_server.State, own: str) -> None:
    said = made(ask(server, own, given={"seed": "3"}), timezone="UTC")
    (first,) = server.recurring.values()
    assert first.display_name == "igligen-xl-512-scheduled"
    assert first.trigger.cron_schedule.cron == "0 0 3 * * 1"
    assert (first.no_catchup, first.max_concurrency, first.mode) == (True, "1", "ENABLE")
    assert first.runtime_config.parameters == {"seed": 3, "only_if_new": True}
    assert first.runtime_config.pipeline_root == "s3://bucket/kfp"
    assert first.service_account == "pipeline-runner"
    assert f"{server.url}/#/recurringrun/details/{first.recurring_run_id}" in said
    assert "-scheduled: made: 0 3" in said
    assert "as asked for already" in made(ask(server, own, given={"seed": "3"}), timezone="UTC")
    assert list(server.recurring.values()) == [first]
    said = made(ask(server, own, given={"seed": "3"}), timezone="UTC", catch_up=True, concurrency=3)
    (second,) = server.recurring.values()
    assert "replaced" in said
    assert second.recurring_run_id != first.recurring_run_id
    assert (second.no_catchup, second.max_concurrency) == (False, "3")
    names = [
        method for method, path, _ in server.requests if path.endswith("/recurringruns") or "/recurringruns/" in path
    ]
    assert names.index("DELETE") > max(place for place, name in enumerate(names) if name == "POST"), "no gap"


@pytest.mark.parametrize(
    ("cron", "changes", "given"),
    [("0 4 * * 1", {}, {}), ("0 3 * * 1", {"only_if_new": False}, {}), ("0 3 * * 1", {}, {"seed": "4"})],
)
def test_any_change_replaces_it(
    server: kfp_server.State,
    own: str,
    cron: str,
    changes: dict[str, Any],
    given: dict[str, str],
) -> None:
    made(ask(server, own))
    assert "replaced" in made(ask(server, own, given=given), cron, **changes)
    assert len(server.recurring) == 1


def test_left_overs_and_a_disabled_one_are_replaced_and_others_left_alone(
    server: kfp_server.State,
    own: str,
) -> None:
    for _ in range(2):
        server.recurring.update(dict(server.recurring))
        made(ask(server, own))
        (only,) = server.recurring.values()
        only.status = "DISABLED"
    made(ask(server, own, pipeline="gligen_coco_512"))
    (coco,) = [each for each in server.recurring.values() if each.display_name.startswith("gligen")]
    # An earlier call that was interrupted left two.
    (mine,) = [each for each in server.recurring.values() if each is not coco]
    import copy

    for number in range(5):
        twin = copy.copy(mine)
        twin.recurring_run_id = f"twin-{number}"
        server.recurring[twin.recurring_run_id] = twin
    assert "replaced" in made(ask(server, own))
    assert len(server.recurring) == 2
    assert coco in server.recurring.values()


def test_two_calls_at_once_leave_one(server: kfp_server.State, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Kubeflow.create_recurring

    def create(self: Kubeflow, **wanted: Any) -> Any:
        mine = real(self, **wanted)
        if wanted["cron"] == "0 0 3 * * 1":  # before this call looks again, another one is served whole
            monkeypatch.setattr(Kubeflow, "create_recurring", real)
            assert "replaced:" in made(ask(server, own), "0 5 * * 1")
        return mine

    monkeypatch.setattr(Kubeflow, "create_recurring", create)
    said = made(ask(server, own))
    (left,) = server.recurring.values()
    assert left.trigger.cron_schedule.cron == "0 0 5 * * 1", "the newest"
    assert "another call meanwhile asked for 0 5 * * 1 UTC" in said
    assert left.recurring_run_id in said


def test_a_zone_with_summer_time_starts_at_both_hours_and_asks_which_it_is(
    server: kfp_server.State,
    own: str,
) -> None:
    said = made(ask(server, own), timezone="Europe/Berlin")
    (record,) = server.recurring.values()
    assert record.trigger.cron_schedule.cron == "0 0 1,2 * * 1"
    assert record.runtime_config.parameters == {
        "only_if_new": True,
        "cron": "0 3 * * 1",
        "timezone": "Europe/Berlin",
        "scheduled_at": "[[ScheduledTime]]",
    }
    assert "changes its clock" in said
    assert "puts its clock forward" in said
    Path(own).write_text(Path(own).read_text() + "cron_timezone: Europe/Berlin\n")
    said = made(ask(server, own), timezone="Europe/Berlin")
    (record,) = server.recurring.values()
    assert record.trigger.cron_schedule.cron == "0 0 3 * * 1"
    assert record.runtime_config.parameters == {"only_if_new": True}


@pytest.mark.parametrize(
    ("cron", "changes", "said"),
    [
        ("0 3 * *", {}, "4 fields"),
        ("0 3 * * 1", {"timezone": "Berlin"}, "no time zone"),
        ("0 1 1 * *", {"timezone": "Asia/Tokyo"}, "no cron expression says that"),
        ("0 3 * * 1", {"concurrency": 0}, "CONCURRENCY=0"),
        ("0 3 * * 1", {"concurrency": 11}, "CONCURRENCY=11"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    server: kfp_server.State,
    own: str,
    cron: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(ConfigError, match=said):
        made(ask(server, own), cron, **changes)
    assert not server.recurring
    assert not server.versions


def test_a_pipeline_without_a_model_is_refused(server: kfp_server.State, own: str) -> None:
    with pytest.raises(ConfigError, match="registers no model"):
        made(ask(server, own, pipeline="gligen_coco_annotate"))


def test_what_was_there_stays_where_the_new_one_cannot_be_made(server: kfp_server.State, own: str) -> None:
    made(ask(server, own))
    before = list(server.recurring)
    server.status, server.only = 500, "/upload_version"
    Path(own).write_text(Path(own).read_text() + "defaults: {cpu: '3'}\n")
    with pytest.raises(ServiceError):
        made(ask(server, own), "0 5 * * *")
    assert list(server.recurring) == before


def test_listed_and_removed(server: kfp_server.State, own: str) -> None:
    for pipeline in ("igligen_xl_512", "gligen_coco_512", "igligen_xl_1024"):
        made(ask(server, own, pipeline=pipeline, given={"train_stage1": "false"} if "1024" in pipeline else {}))
    rows = schedule.schedules(PROJECT, ask(server, own))
    assert [row[0] for row in rows[1:]] == [
        "gligen-coco-512-scheduled", "igligen-xl-1024-scheduled", "igligen-xl-512-scheduled",
    ]  # fmt: skip
    assert rows[1][1:4] == ("0 3 * * 1 UTC", "0 0 3 * * 1", "enabled")
    out = io.StringIO()
    for _ in range(2):
        schedule.unschedule(PROJECT, ask(server, own), out)
    assert "removed" in out.getvalue()
    assert "there was none" in out.getvalue()
    assert len(server.recurring) == 2
    with pytest.raises(AtelierError, match="did you mean igligen_xl_512"):
        schedule.unschedule(PROJECT, ask(server, own, pipeline="igligen_xl_521"))


def test_the_wrapper_looks_first_and_has_the_pipelines_own_form(
    server: kfp_server.State,
    own: str,
) -> None:
    made(ask(server, own))
    (text,) = server.packages.values()
    spec, _ = documents(text)
    root = spec["root"]["dag"]["tasks"]
    assert set(root) == {"look", "condition-1"}
    assert "== 'go'" in root["condition-1"]["triggerPolicy"]["condition"]
    inner = catalogue.load(PROJECT, "igligen_xl_512").parameters
    inputs = spec["root"]["inputDefinitions"]["parameters"]
    assert set(inputs) == set(inner) | set(scheduled.OWN)
    assert all(each["description"] for each in inputs.values())
    assert inputs["profile"]["literals"] == ["laptop", "paper"]
    assert inputs["only_if_new"]["defaultValue"] is True
    look = spec["deploymentSpec"]["executors"]["exec-look"]["container"]
    assert look["image"].startswith("r.example/ops@sha256:"), "the small image"
