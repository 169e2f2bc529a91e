"""The few requests that the launcher makes of a Kubernetes API server, as plain JSON objects.

By the official ``kubernetes`` client's connection (kubeconfig, in-cluster token and its renewal, TLS), without its
classes: what comes back is what the server said, also of fields that the client's version does not know.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atelier.errors import ConfigError, ServiceError
from atelier.training.trainjob.manifest import GROUP, VERSION

Object = dict[str, Any]
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_S, READ_S, PATIENCE_S = 5.0, 20.0, 900.0


class Conflict(Exception):
    """There is an object of that name already."""


class Api:
    """One namespace of one cluster.

    A server that is away, or busy (429, 5xx), is asked again until ``patience_s`` is over: a launcher must outlive an
    upgrade of the control plane. The first request of all is given ten seconds.

    Raises (every method):
        ServiceError: the server does not answer, or the account may not do this.
        ConfigError: the server refuses the object.
    """

    def __init__(self, connection: Any, namespace: str, patience_s: float = PATIENCE_S) -> None:
        self._connection, self.namespace = connection, namespace
        self.patience_s = 10.0
        self._later_s = patience_s

    @staticmethod
    def connect(namespace: str = "") -> "Api":
        """From inside a pod by its account, else by the kubeconfig.

        Args:
            namespace: "": that of the pod, or of the kubeconfig's context.
        """
        from kubernetes import client, config

        settings = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and (ACCOUNT / "token").exists():
                config.load_incluster_config(client_configuration=settings)
                found = (ACCOUNT / "namespace").read_text().strip()
            else:
                # The library reads the variable once, when it is imported.
                file = os.environ.get("KUBECONFIG") or None
                config.load_kube_config(file, client_configuration=settings)
                found = config.list_kube_config_contexts(file)[1]["context"].get("namespace", "default")
        except (config.ConfigException, OSError, KeyError) as error:
            raise ConfigError(
                f"no Kubernetes cluster to run the training on: {error}",
                "run in a pod with a service account, or set KUBECONFIG",
            ) from error
        settings.retries = False
        return Api(client.ApiClient(settings), namespace or found)

    def _path(self, kind: str, name: str = "", group: str = "", namespaced: bool = True) -> str:
        root = f"/apis/{group}" if group else "/api/v1"
        middle = f"/namespaces/{self.namespace}" if namespaced else ""
        return f"{root}{middle}/{kind}" + (f"/{name}" if name else "")

    def get(self, kind: str, name: str, group: str = "", namespaced: bool = True) -> Object | None:
        """An object; None when there is none."""
        return self._ask("GET", self._path(kind, name, group, namespaced), missing=None)

    def find(self, kind: str, group: str = "", labels: str = "", fields: str = "") -> list[Object]:
        """Objects by label or field selector."""
        query = [(key, value) for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value]
        found: list[Object] = (self._ask("GET", self._path(kind, group=group), query) or {}).get("items", [])
        return found

    def jobs(self, labels: str) -> list[Object]:
        """TrainJobs by label."""
        return self.find("trainjobs", f"{GROUP}/{VERSION}", labels)

    def job(self, name: str) -> Object | None:
        """One TrainJob; None when there is none."""
        return self.get("trainjobs", name, f"{GROUP}/{VERSION}")

    def create_job(self, job: Object) -> Object:
        """Creates a TrainJob.

        Raises:
            Conflict: one of that name is there.
        """
        made: Object = self._ask("POST", self._path("trainjobs", group=f"{GROUP}/{VERSION}"), body=job)
        return made

    def annotate_job(self, name: str, annotations: dict[str, str]) -> None:
        """Sets annotations of a TrainJob; one that is gone is left alone."""
        body = {"metadata": {"annotations": annotations}}
        self._ask("PATCH", self._path("trainjobs", name, f"{GROUP}/{VERSION}"), body=body, missing=None)

    def delete_job(self, name: str) -> None:
        """Deletes a TrainJob and, by the cluster's garbage collection, its pods; one that is gone is fine."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        self._ask("DELETE", self._path("trainjobs", name, f"{GROUP}/{VERSION}"), body=body, missing=None)

    def log(self, pod: str, container: str, since_s: int | None = None) -> Iterator[bytes]:
        """A container's output from ``since_s`` ago on, each line with its time, until it or the connection ends."""
        query = [("container", container), ("follow", "true"), ("timestamps", "true")]
        if since_s is not None:
            query.append(("sinceSeconds", str(max(since_s, 1))))
        response = self._request("GET", self._path("pods", f"{pod}/log"), query, None, read_s=30.0)
        with contextlib.closing(response):
            rest = b""
            for chunk in response.stream(2**16, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line for line in lines)
            if rest:
                yield rest

    def _ask(
        self, method: str, path: str, query: list[tuple[str, str]] | None = None, body: Any = None, **other: Any
    ) -> Any:
        """The answer; for 404 ``missing``, where that is given."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        deadline, pause, told = time.monotonic() + self.patience_s, 0.5, False
        while True:
            try:
                answer = json.loads(self._request(method, path, query or [], body).data or b"{}")
                self.patience_s = self._later_s
                return answer
            except ApiException as error:
                said = _message(error)
                if error.status == 404 and "missing" in other:
                    return other["missing"]
                if error.status == 409 and method == "POST":
                    raise Conflict(said) from None
                if error.status in (401, 403):
                    raise ServiceError(
                        f"the cluster refuses {method} {path}: {said}",
                        "give the account what k8s/base/rbac.yaml gives pipeline-runner",
                    ) from None
                # Status 0 is the client's word for a TLS connection that broke: no answer, so no refusal.
                if error.status and error.status != 429 and error.status < 500:
                    raise ConfigError(f"the cluster refuses {method} {path}: {said}", "correct the profile") from None
                problem = said
            except (HTTPError, OSError) as error:
                problem = str(error)
            if time.monotonic() + pause > deadline:
                raise ServiceError(
                    f"the cluster's API server does not answer ({problem[:300]})", "check KUBECONFIG and the cluster"
                ) from None
            if not told:
                print(
                    f"the cluster's API server does not answer ({problem[:200]}); trying on",
                    file=sys.stderr,
                    flush=True,
                )
                told = True
            time.sleep(pause)
            pause = min(pause * 2, 15.0)

    def _request(self, method: str, path: str, query: list[tuple[str, str]], body: Any, read_s: float = READ_S) -> Any:
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        return self._connection.call_api(
            path,
            method,
            query_params=query,
            header_params={"Accept": "application/json, */*", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(CONNECT_S, read_s),
        )


def labelled(labels: dict[str, str]) -> str:
    """A label selector."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


def _message(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])[:600]
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"
