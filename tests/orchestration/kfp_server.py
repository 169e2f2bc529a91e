"""A small Kubeflow Pipelines: the part of its v2beta1 API that we use, over HTTP, kept to kfp_server_api's own models.

Every request body is read by the model that the API names and every answer is written by one, so that a field that KFP
does not know is an error here too. It keeps to what the real server does where that matters: a single-user server takes
no namespace, names of versions are unique in a pipeline, lists come in pages, a recurring run is never replaced.
"""

import contextlib
import email
import email.policy
import http.server
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.documents import documents

ROOT = "/apis/v2beta1"


class Problem(Exception):
    """An answer of the API that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class State:
    """What the server holds and how it behaves.

    Attributes:
        multi_user: namespaces keep users apart.
        token: what a request must carry, "" for nothing.
        largest_page: answers are cut into pages no larger than this.
        status: every request gets this error.
        page: every request gets this web page instead.
        slow_s: how long each answer takes.
        dies: how many of the next answers break off half-way, after the work was done.
        drops: how many of the next connections are closed without a word, before any work.
        requests: (method, path, query) of every request.
    """

    url: str = ""
    multi_user: bool = True
    token: str = ""
    largest_page: int = 2
    status: int = 0
    page: str = ""
    slow_s: float = 0.0
    dies: int = 0
    drops: int = 0
    only: str = ""
    pipelines: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    experiments: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    recurring: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    clock: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        """Each call a second later, so that the order of things is known."""
        self.clock += timedelta(seconds=1)
        return self.clock

    def posts(self, path: str) -> int:
        """How often something was posted there."""
        return sum(method == "POST" and asked.endswith(path) for method, asked, _ in self.requests)

    def move(self, run: str, state: str, tasks: dict[str, str] | None = None, message: str = "") -> None:
        """Sets a run's state, and its tasks'."""
        record = self.runs[run]
        record.state = state
        if message:
            record.error = api.GoogleRpcStatus(code=2, message=message)
        record.run_details = api.V2beta1RunDetails(
            task_details=[
                api.V2beta1PipelineTaskDetail(run_id=run, task_id=name, display_name=name, state=now)
                for name, now in (tasks or {}).items()
            ]
        )


_CLIENT = api.ApiClient()


def read(text: bytes, model: str) -> Any:
    """A request's body as the API's model; what the model does not know is refused."""
    record = json.loads(text)
    known = set(getattr(api, model).attribute_map.values())
    unknown = record.keys() - known
    if unknown:
        raise Problem(400, f"unknown fields in {model}: {sorted(unknown)}")

    class Answer:
        data = json.dumps(record)

    return _CLIENT.deserialize(Answer, model)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, format: str, *args: object) -> None:
        return None

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        state = self.state
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state.requests.append((self.command, parts.path, query))
        concerned = state.only in parts.path
        if state.drops and concerned:
            state.drops -= 1
            return self._break()
        time.sleep(state.slow_s if concerned else 0)
        if state.page and concerned:
            return self._send(200, state.page.encode(), "text/html; charset=utf-8")
        try:
            if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
                raise Problem(401, "Request header error: there is no user identity header.")
            if state.status and concerned:
                raise Problem(state.status, "as the test wants it")
            answer = self._route(parts.path, query, body)
        except Problem as problem:
            text = json.dumps({"error": problem.message, "code": 2, "message": problem.message, "details": []})
            return self._send(problem.status, text.encode(), "application/json")
        content = json.dumps(_CLIENT.sanitize_for_serialization(answer)).encode()
        if state.dies and concerned:
            state.dies -= 1
            return self._break(content)
        return self._send(200, content, "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def _break(self, content: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            if content:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content) + 10))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _route(self, path: str, query: dict[str, str], body: bytes) -> Any:
        if not path.startswith(ROOT):
            raise Problem(404, "Not Found")
        rest = path.removeprefix(ROOT)
        for method, pattern, function in ROUTES:
            match = re.fullmatch(pattern, rest)
            if match and method == self.command:
                if function is _upload:
                    return _upload(self.state, query, body, self.headers["Content-Type"])
                return function(self.state, query, body, *match.groups())
        raise Problem(404, f"no such method: {self.command} {path}")


def _health(state: State, query: dict[str, str], body: bytes) -> Any:
    return api.V2beta1GetHealthzResponse(multi_user=state.multi_user)


def _space(state: State, namespace: str | None) -> str:
    if not state.multi_user and namespace:
        raise Problem(400, "In single-user mode, the namespace must be empty.")
    return namespace or ""


def _create_pipeline(state: State, query: dict[str, str], body: bytes) -> Any:
    wanted = read(body, "V2beta1Pipeline")
    space = _space(state, wanted.namespace)
    if not wanted.display_name:
        raise Problem(400, "pipeline's name cannot be empty")
    if any((each.display_name, each.namespace) == (wanted.display_name, space) for each in state.pipelines.values()):
        raise Problem(409, f"Already exist error: pipeline {wanted.display_name}")
    made = api.V2beta1Pipeline(
        pipeline_id=str(uuid.uuid4()),
        display_name=wanted.display_name,
        name=wanted.name,
        description=wanted.description,
        namespace=space,
        created_at=state.now(),
    )
    state.pipelines[made.pipeline_id] = made
    return made


def _upload(state: State, query: dict[str, str], body: bytes, kind: str) -> Any:
    pipeline, name = query.get("pipelineid", ""), query.get("name", "")
    if pipeline not in state.pipelines:
        raise Problem(404, f"Pipeline {pipeline} not found.")
    message = email.message_from_bytes(
        b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body, policy=email.policy.default
    )
    (part,) = [
        each for each in message.iter_parts() if each.get_param("name", header="content-disposition") == "uploadfile"
    ]
    text = part.get_content()
    text = text if isinstance(text, str) else text.decode()
    spec, platform = documents(text)
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    if any(each.pipeline_id == pipeline and each.display_name == name for each in state.versions.values()):
        raise Problem(409, f"Already exist error: version {name}")
    made = api.V2beta1PipelineVersion(
        pipeline_id=pipeline,
        pipeline_version_id=str(uuid.uuid4()),
        display_name=name,
        name=name,
        description=query.get("description"),
        created_at=state.now(),
        pipeline_spec={"pipeline_spec": spec, "platform_spec": platform},
    )
    state.versions[made.pipeline_version_id] = made
    state.packages[made.pipeline_version_id] = text
    return made


def _list_pipelines(state: State, query: dict[str, str], body: bytes) -> Any:
    space = _space(state, query.get("namespace"))
    found, token = _page(state, query, [each for each in state.pipelines.values() if each.namespace in ("", space)])
    return api.V2beta1ListPipelinesResponse(pipelines=found, next_page_token=token)


def _list_versions(state: State, query: dict[str, str], body: bytes, pipeline: str) -> Any:
    found, token = _page(state, query, [each for each in state.versions.values() if each.pipeline_id == pipeline])
    return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=found, next_page_token=token)


def _create_experiment(state: State, query: dict[str, str], body: bytes) -> Any:
    wanted = read(body, "V2beta1Experiment")
    space = _space(state, wanted.namespace)
    if state.multi_user and not space:
        raise Problem(400, "In multi-user mode, the namespace is needed.")
    made = api.V2beta1Experiment(
        experiment_id=str(uuid.uuid4()), display_name=wanted.display_name, namespace=space, created_at=state.now()
    )
    state.experiments[made.experiment_id] = made
    return made


def _list_experiments(state: State, query: dict[str, str], body: bytes) -> Any:
    space = _space(state, query.get("namespace"))
    found, token = _page(state, query, [each for each in state.experiments.values() if each.namespace == space])
    return api.V2beta1ListExperimentsResponse(experiments=found, next_page_token=token)


def _known(state: State, record: Any) -> None:
    if record.experiment_id not in state.experiments:
        raise Problem(404, "Experiment not found.")
    reference = record.pipeline_version_reference
    version = state.versions.get(reference.pipeline_version_id)
    if version is None or version.pipeline_id != reference.pipeline_id:
        raise Problem(404, "Pipeline version not found.")
    inputs = version.pipeline_spec["pipeline_spec"]["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, value in (record.runtime_config.parameters or {}).items():
        if name not in inputs:
            raise Problem(400, f"Invalid input error: parameter {name} is not in the pipeline")
        choices = inputs[name].get("literals")
        if choices and value not in choices:
            raise Problem(400, f"Invalid input error: {name} must be one of {choices}")


def _create_run(state: State, query: dict[str, str], body: bytes) -> Any:
    wanted = read(body, "V2beta1Run")
    _known(state, wanted)
    wanted.run_id, wanted.created_at, wanted.state = str(uuid.uuid4()), state.now(), "PENDING"
    state.runs[wanted.run_id] = wanted
    return wanted


def _list_runs(state: State, query: dict[str, str], body: bytes) -> Any:
    found = [each for each in state.runs.values() if each.experiment_id == query.get("experiment_id")]
    if query.get("sort_by") == "created_at desc":
        found.sort(key=lambda each: each.created_at, reverse=True)
    found, token = _page(state, query, found)
    return api.V2beta1ListRunsResponse(runs=found, next_page_token=token)


def _get_run(state: State, query: dict[str, str], body: bytes, run: str) -> Any:
    if run not in state.runs:
        raise Problem(404, f"Run {run} not found.")
    return state.runs[run]


def _terminate(state: State, query: dict[str, str], body: bytes, run: str) -> Any:
    _get_run(state, query, body, run).state = "CANCELING"
    return {}


def _create_recurring(state: State, query: dict[str, str], body: bytes) -> Any:
    wanted = read(body, "V2beta1RecurringRun")
    _known(state, wanted)
    cron = wanted.trigger.cron_schedule.cron
    if len(cron.split()) != 6:
        raise Problem(400, f"Schedule cron is not supported: {cron}")
    if not 1 <= int(wanted.max_concurrency) <= 10:
        raise Problem(400, "The max concurrency must be from 1 to 10.")
    wanted.recurring_run_id, wanted.created_at = str(uuid.uuid4()), state.now()
    wanted.status = "ENABLED" if wanted.mode == "ENABLE" else "DISABLED"
    wanted.namespace = state.experiments[wanted.experiment_id].namespace
    state.recurring[wanted.recurring_run_id] = wanted
    return wanted


def _list_recurring(state: State, query: dict[str, str], body: bytes) -> Any:
    space = _space(state, query.get("namespace"))
    if state.multi_user and not space:
        raise Problem(400, "In multi-user mode, ListRecurringRuns must filter by namespace.")
    found, token = _page(state, query, [each for each in state.recurring.values() if each.namespace == space])
    return api.V2beta1ListRecurringRunsResponse(recurring_runs=found, next_page_token=token)


def _delete_recurring(state: State, query: dict[str, str], body: bytes, identity: str) -> Any:
    if state.recurring.pop(identity, None) is None:
        raise Problem(404, f"Recurring run {identity} not found.")
    return {}


def _page(state: State, query: dict[str, str], found: list[Any]) -> tuple[list[Any], str | None]:
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        # KFP's own client gives the operation as the enumeration's number.
        if predicate["operation"] not in ("EQUALS", 1) or predicate["key"] != "display_name":
            raise Problem(400, "the test server knows no such filter")
        found = [each for each in found if each.display_name == predicate["stringValue"]]
    start = int(query.get("page_token") or 0)
    end = start + min(int(query.get("page_size") or 20), state.largest_page)
    return found[start:end], str(end) if end < len(found) else None


ID = r"([^/:]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/healthz", _health),
    ("POST", "/pipelines", _create_pipeline),
    ("GET", "/pipelines", _list_pipelines),
    ("POST", "/pipelines/upload_version", _upload),
    ("GET", f"/pipelines/{ID}/versions", _list_versions),
    ("POST", "/experiments", _create_experiment),
    ("GET", "/experiments", _list_experiments),
    ("POST", "/runs", _create_run),
    ("GET", "/runs", _list_runs),
    ("GET", f"/runs/{ID}", _get_run),
    ("POST", f"/runs/{ID}:terminate", _terminate),
    ("POST", "/recurringruns", _create_recurring),
    ("GET", "/recurringruns", _list_recurring),
    ("DELETE", f"/recurringruns/{ID}", _delete_recurring),
]


@contextlib.contextmanager
def serving() -> Iterator[State]:
    """Runs one on loopback."""
    state = State()
    handler = type("Handler", (Handler,), {"state": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield state
        finally:
            server.shutdown()
