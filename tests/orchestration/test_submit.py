"""Submitting, with the real KFP client over HTTP: once means once, and every fault is one screen."""

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from atelier.errors import AtelierError, ConfigError, ServiceError
from atelier.orchestration import cluster, connection, kubeflow, submit
from atelier.orchestration.submit import Request
from tests.documents import documents
from tests.orchestration import kfp_server
from tests.orchestration.asking import DIGEST, OWN, PROJECT, ask


def submitted(request: Request, **options: Any) -> tuple[int, str]:
    out = io.StringIO()
    return submit.submit(PROJECT, request, out=out, **options), out.getvalue()


def test_uploaded_run_and_linked(server: kfp_server.State, own: str) -> None:
    code, said = submitted(ask(server, own, given={"seed": "7", "train_steps": "100"}))
    assert code == 0
    (pipeline,), (version,), (run,) = (list(x.values()) for x in (server.pipelines, server.versions, server.runs))
    assert (pipeline.display_name, pipeline.namespace) == ("igligen-xl-512", "team")
    assert version.display_name.startswith("igligen-xl-512-own-")
    assert run.runtime_config.parameters == {"seed": 7, "train_steps": 100}
    assert run.runtime_config.pipeline_root == "s3://bucket/kfp"
    assert run.service_account == "pipeline-runner"
    assert server.experiments[run.experiment_id].display_name == "nightly"
    assert f"{server.url}/#/runs/details/{run.run_id}" in said
    assert "could not be checked: the cluster (no kubeconfig" in said
    document = documents(server.packages[version.pipeline_version_id])[0]
    assert document["root"]["inputDefinitions"]["parameters"]["artifacts"]["defaultValue"] == "s3://bucket/prefix"


def test_pressed_twice_is_one_run_and_one_version(server: kfp_server.State, own: str) -> None:
    request = ask(server, own, given={"seed": "7"})
    _, first = submitted(request)
    _, second = submitted(request)
    (run,) = server.runs
    assert (len(server.pipelines), len(server.versions), server.posts("/upload_version")) == (1, 1, 1)
    assert "is there already" in second
    assert "running with the same parameters" in second
    assert run in first
    assert run in second
    submitted(request, again=True)
    assert len(server.runs) == 2
    submitted(ask(server, own, given={"seed": "8"}))
    assert len(server.runs) == 3
    for each in list(server.runs):
        server.move(each, "SUCCEEDED")
    submitted(request)
    assert len(server.runs) == 4, "a run that has ended is no reason not to start one"
    assert len(server.versions) == 1


def test_another_content_is_another_version(server: kfp_server.State, own: str) -> None:
    submitted(ask(server, own))
    Path(own).write_text(Path(own).read_text() + "defaults: {cpu: '3'}\n")
    _, said = submitted(ask(server, own))
    assert len(server.pipelines) == 1
    assert len({each.display_name for each in server.versions.values()}) == 2
    assert "uploaded" in said
    assert len(server.runs) == 2, "the same parameters of another version are another run"


def test_the_same_run_is_found_on_a_later_page(server: kfp_server.State, own: str) -> None:
    submitted(ask(server, own, given={"seed": "1"}))
    for seed in range(2, 8):
        submitted(ask(server, own, given={"seed": str(seed)}))
    assert len(server.runs) == 7
    assert "same version is running" in submitted(ask(server, own, given={"seed": "1"}))[1]


def test_a_single_user_server_is_given_no_namespace(server: kfp_server.State, own: str) -> None:
    server.multi_user = False
    submitted(ask(server, own))
    (pipeline,), (experiment,) = server.pipelines.values(), server.experiments.values()
    assert (pipeline.namespace, experiment.namespace) == ("", "")
    assert "same version is running" in submitted(ask(server, own))[1]


def test_names_from_flags_and_environment(
    server: kfp_server.State, own: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.token = "let me in"
    token = tmp_path / "token"
    token.write_text("let me in\n")
    monkeypatch.setenv(connection.ENDPOINT, server.url)
    monkeypatch.setenv(connection.UI_ENDPOINT, "https://ui.example/pipeline")
    with pytest.raises(ServiceError, match=r"HTTP 401.*no user identity"):
        submitted(ask(server, own, host=""))
    monkeypatch.setenv(connection.TOKEN_PATH, str(token))
    monkeypatch.setenv(submit.DEFAULT_EXPERIMENT, "mine")
    _, said = submitted(ask(server, own, host="", namespace="other"))
    assert "https://ui.example/pipeline/#/runs/details/" in said
    (experiment,) = server.experiments.values()
    assert (experiment.display_name, experiment.namespace) == ("mine", "other")
    monkeypatch.setenv(connection.TOKEN, "wrong")
    with pytest.raises(ServiceError, match="HTTP 401"):
        submitted(ask(server, own, host=""))


@pytest.mark.parametrize(
    "text",
    ["a 'quoted' \"text\"", "two\nlines\tand a tab", "back\\slash ${HOME} `id`", "ünï-🙂", "50 % of {x} }} and $HOME"],
)
def test_a_value_arrives_as_it_is(server: kfp_server.State, own: str, text: str) -> None:
    submitted(ask(server, own, given={"base_model": text}))
    (run,) = server.runs.values()
    assert run.runtime_config.parameters == {"base_model": text}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"pipeline": "igligen_xl_521"}, "did you mean igligen_xl_512"),
    ({"profile": "papre"}, "did you mean paper"),
    ({"given": {"train_step": "1"}}, "did you mean train_steps"),
    ({"given": {"train_steps": "many"}}, "no whole number"),
    ({"given": {"profile": "huge"}}, "none of its choices"),
    ({"given": {"base_model": "$(cat /etc/passwd)"}}, "which Kubernetes replaces"),
    ({"given": {"base_model": "a$$b"}}, "which Kubernetes replaces"),
    ({"given": {"base_model": "{{workflow.name}}"}}, "holds {{"),
    ({"given": {"base_model": "a\x07b"}}, "control character"),
    ({"given": {"train_overrides": "{"}}, "step train would fail: train_overrides is no JSON"),
    ({"given": {"batch_size": "7"}}, "7 is not divisible by processes"),
    ({"given": {"pretrain": "true"}}, "step base would fail"),
    ({"artifacts": "/tmp/here"}, "no pod could reach that"),
    ({"artifacts": "s3://UPPER/x"}, "no name of a bucket"),
    ({"artifacts": "s3://a-b/x", "given": {"artifacts": "s3://c-d/x"}}, "given twice"),
    ({"namespace": "n" * 64}, "no Kubernetes namespace"),
    ({"experiment": "e" * 101}, "101 characters"),
    ({"name": "two\nlines"}, "at most 100, in one line"),
    ({"host": "ftp://x"}, "no address"),
    ({"host": "https://user:pass@x"}, "user or password"),
    ({"host": "http://x:99999"}, "no address"),
    ({"token_file": "/nowhere"}, "token file /nowhere cannot be read"),
    ({"image_digests": "/nowhere"}, "image digests /nowhere cannot be read"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[said[:30] for _, said in BAD])
def test_bad_input_is_one_screen_and_starts_nothing(
    server: kfp_server.State, own: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(AtelierError) as caught:
        submitted(ask(server, own, **changes))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6
    assert not server.runs
    assert not server.versions


def test_no_host_no_kubeconfig(server: kfp_server.State, own: str) -> None:
    with pytest.raises(ConfigError, match="there is no address of Kubeflow Pipelines"):
        submitted(ask(server, own, host=""))


def test_an_image_that_is_no_digest_is_refused(server: kfp_server.State, own: str) -> None:
    Path(own).write_text(OWN.format(references=""))
    with pytest.raises(ConfigError, match="names no registry for the image"):
        submitted(ask(server, own))
    assert not server.versions
    submitted(ask(server, own, allow_tags=True))
    (text,) = server.packages.values()
    assert "image: atelier/python-train:" in text
    Path(own).write_text(Path(own).read_text() + "steps: {report: {image: 'x/report:v1'}}\n")
    written = Path(own).with_name("digests.json")
    written.write_text(json.dumps({target: f"r/{target}@{DIGEST}" for target in ("ops", "train", "evaluate")}))
    with pytest.raises(ConfigError, match=r"steps\.report\.image"):
        submitted(ask(server, own, image_digests=str(written)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": 401}, "HTTP 401"),
        ({"status": 403}, "HTTP 403"),
        ({"status": 404}, "HTTP 404"),
        ({"status": 409}, "HTTP 409"),
        ({"status": 500}, "HTTP 500"),
        ({"page": "<html>log in</html>"}, "a web page, not with the API"),
        ({"drops": 99}, "does not answer"),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["/healthz", "/pipelines", "/upload_version", "/experiments", "/runs"])
def test_what_a_server_may_answer(
    server: kfp_server.State, own: str, where: str, change: dict[str, Any], said: str
) -> None:
    server.only = where
    for name, value in change.items():
        setattr(server, name, value)
    began = time.monotonic()
    with pytest.raises(ServiceError, match=said) as caught:
        submitted(ask(server, own))
    assert time.monotonic() - began < 20
    assert len(str(caught.value).splitlines()) <= 4
    assert "Traceback" not in str(caught.value)


def test_nobody_there_is_said_within_ten_seconds(server: kfp_server.State, own: str) -> None:
    began = time.monotonic()
    with pytest.raises(ServiceError, match="Connection refused"):
        submitted(ask(server, own, host="http://127.0.0.1:1"))
    with pytest.raises(ServiceError, match=r"nowhere\.invalid.*does not answer"):
        submitted(ask(server, own, host="https://nowhere.invalid/pipeline"))
    assert time.monotonic() - began < 20


def test_a_server_that_hangs_is_said_in_time(
    server: kfp_server.State, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "DEADLINE_S", 0.5)
    server.slow_s = 3.0
    began = time.monotonic()
    with pytest.raises(ServiceError, match="does not answer"):
        connection.connect(connection.address(server.url))
    assert time.monotonic() - began < 2
    monkeypatch.setattr(connection, "READ_S", 0.3)
    server.only = "/pipelines"
    with pytest.raises(ServiceError, match="does not answer"):
        submitted(ask(server, own))


def test_an_answer_that_was_lost_does_not_make_a_second_one(server: kfp_server.State, own: str) -> None:
    """The server did what was asked for and died before it said so."""
    server.dies, server.only = 1, "/upload_version"
    code, said = submitted(ask(server, own))
    assert (code, len(server.versions), len(server.runs)) == (0, 1, 1)
    assert "is there already" in said

    server.runs.clear()
    server.only = "/runs"
    prepared = submit.prepare(PROJECT, ask(server, own))
    uploaded = submit.upload(prepared, io.StringIO())
    experiment = uploaded.kubeflow.experiment("nightly")
    server.dies = 1
    run = uploaded.kubeflow.run(
        experiment=experiment,
        name="once",
        pipeline=uploaded.pipeline,
        version=uploaded.version,
        parameters={},
        root="",
        account="",
    )
    assert list(server.runs) == [run.run_id]


def test_followed_to_the_end(server: kfp_server.State, own: str) -> None:
    script = [
        ("RUNNING", {"base": "RUNNING", "base-driver": "SUCCEEDED"}, ""),
        ("RUNNING", {"base": "SUCCEEDED", "train": "RUNNING"}, ""),
        ("FAILED", {"base": "SUCCEEDED", "train": "FAILED"}, "step train: out of memory"),
    ]

    def play() -> None:
        while not server.runs:
            time.sleep(0.02)
        (run,) = server.runs
        for state, tasks, message in script:
            server.drops = 1  # a server that stumbles now and then
            server.move(run, state, tasks, message)
            time.sleep(0.3)

    player = threading.Thread(target=play)
    player.start()
    code, said = submitted(ask(server, own), wait=True)
    player.join()
    assert code == 1
    assert "base running" in said
    assert "train failed" in said
    assert "out of memory" in said
    assert "driver" not in said


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 130)])
def test_the_exit_code_tells_how_it_ended(server: kfp_server.State, own: str, state: str, code: int) -> None:
    submitted(ask(server, own))
    (run,) = server.runs
    server.move(run, state)
    where = connection.connect(connection.address(server.url), "team")
    assert submit.follow(kubeflow.Kubeflow(where), run, io.StringIO()) == code


def test_interrupted_watching_leaves_the_run(
    server: kfp_server.State, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = kubeflow.Kubeflow.get, []

    def pressed(self: kubeflow.Kubeflow, run: str) -> Any:
        seen.append(run)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, run)

    monkeypatch.setattr(kubeflow.Kubeflow, "get", pressed)
    code, said = submitted(ask(server, own), wait=True)
    (run,) = server.runs
    assert code == 130
    assert f"make stop RUN={run}" in said
    assert server.runs[run].state == "PENDING"


def test_a_server_away_for_too_long_is_told_and_the_run_goes_on(
    server: kfp_server.State, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted(ask(server, own))
    (run,) = server.runs
    where = connection.connect(connection.address(server.url), "team")
    monkeypatch.setattr(submit, "PATIENCE_S", 0.1)
    server.drops = 10_000
    with pytest.raises(ServiceError, match="out of sight") as caught:
        submit.follow(kubeflow.Kubeflow(where), run, io.StringIO())
    assert f"make stop RUN={run}" in str(caught.value)


def test_stopped(server: kfp_server.State, own: str) -> None:
    submitted(ask(server, own))
    (run,) = server.runs
    out = io.StringIO()
    assert submit.stop(PROJECT, run, ask(server, own), out) == 0
    assert server.runs[run].state == "CANCELING"
    server.move(run, "CANCELED")
    submit.stop(PROJECT, run, ask(server, own), out)
    assert "had ended already: canceled" in out.getvalue()
    assert server.posts(":terminate") == 1
    with pytest.raises(ServiceError, match=r"HTTP 404.*not found"):
        submit.stop(PROJECT, "no-such-run", ask(server, own), out)
    with pytest.raises(ConfigError, match="no run's id"):
        submit.stop(PROJECT, "../x", ask(server, own), out)


def test_a_lack_in_the_cluster_is_told_before_anything_is_uploaded(
    server: kfp_server.State, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "connect", lambda: lambda path, accept="": None)
    with pytest.raises(ConfigError, match="in the kubeconfig's cluster: namespace team is not there"):
        submitted(ask(server, own))
    assert not server.pipelines
    submitted(ask(server, own, no_cluster_check=True))
    assert len(server.runs) == 1


def test_the_lowest_zero_stage_that_fits_goes_with_the_run(server: kfp_server.State, own: str) -> None:
    """A profile that names its GPU: what cannot fit is refused before anything is uploaded."""
    record = yaml.safe_load(Path(own).read_text())
    training = {
        "nodes": 1,
        "processes_per_node": 8,
        "image": "registry.example.com/atelier/python-train@sha256:" + "1" * 64,
    }
    Path(own).write_text(yaml.safe_dump(record | {"recipe_profile": "paper", "gpu": "h200", "training": training}))
    _, said = submitted(ask(server, own))
    (run,) = server.runs.values()
    assert run.runtime_config.parameters["zero_stage"] == 1
    assert "train: ZeRO 1 needs" in said
    submitted(ask(server, own, given={"zero_stage": "3"}))
    assert [each.runtime_config.parameters["zero_stage"] for each in server.runs.values()] == [1, 3]

    Path(own).write_text(yaml.safe_dump(record | {"recipe_profile": "paper", "gpu": "t4", "training": training}))
    uploads = server.posts("/upload_version")
    with pytest.raises(ConfigError, match="has no unit for bf16"):
        submitted(ask(server, own))
    assert server.posts("/upload_version") == uploads
