"""The way to Kubeflow Pipelines: ``kfp.Client`` that answers or says within ten seconds why not.

The client of KFP 2.17 waits without end for a server that does not answer, asks a dead one five times with pauses,
prints, and takes a login page for data. Here every request has a deadline, nothing is asked twice behind a person's
back, and each failure is one of our errors.
"""

import contextlib
import io
import json
import os
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from atelier.errors import AtelierError, ConfigError, ServiceError

#: Seconds for a connection, and for an answer; the first request has both within ``DEADLINE_S``.
CONNECT_S, READ_S, DEADLINE_S = 4.0, 30.0, 9.0
ENDPOINT, UI_ENDPOINT = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"
TOKEN, TOKEN_PATH, COOKIE = "KF_PIPELINES_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_COOKIE"
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True)
class Address:
    """Where Kubeflow Pipelines is, and as whom to ask.

    Attributes:
        host: its URL; "" is the way that the kubeconfig or the pod's own account gives.
        installed: the namespace that KFP itself runs in, for that way.
    """

    host: str = ""
    token: str = ""
    cookie: str = ""
    installed: str = "kubeflow"

    @property
    def shown(self) -> str:
        return self.host or "Kubeflow Pipelines by the kubeconfig"


def address(host: str = "", profile_host: str = "", token_file: str = "") -> Address:
    """The address from a flag, the environment or the profile, in this order.

    Raises:
        ConfigError: a host that is no URL, a token file that cannot be read, or there is no way at all.
    """
    host = (host or os.environ.get(ENDPOINT, "") or profile_host).strip().rstrip("/")
    if host and "://" not in host:
        # As people write port-forwards; everything else is encrypted unless it says otherwise.
        local = host.partition("/")[0].partition(":")[0] in ("localhost", "127.0.0.1")
        host = f"{'http' if local else 'https'}://{host}"
    try:
        parts = urlsplit(host)
        good = not host or (parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0)
    except ValueError:
        good = False
    if not good or any(character.isspace() for character in host):
        raise ConfigError(f"HOST={host!r} is no address", "e.g. HOST=https://kubeflow.example.com/pipeline")
    if parts.username or parts.password:
        raise ConfigError("the host holds a user or password", f"give a token in {TOKEN}, or a cookie in {COOKIE}")
    if not host and not IN_CLUSTER.exists() and not kubeconfig():
        raise ConfigError(
            "there is no address of Kubeflow Pipelines: no HOST, no kubeconfig",
            f"HOST=https://kubeflow.example.com/pipeline, {ENDPOINT}, or `host:` in the profile",
        )
    token = os.environ.get(TOKEN, "")
    named = token_file or ("" if token else os.environ.get(TOKEN_PATH, ""))
    if named:
        try:
            token = Path(named).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the token file {named} cannot be read: {error}", "give a file with the token") from None
    return Address(host, token, os.environ.get(COOKIE, ""))


def kubeconfig() -> str:
    """The kubeconfig (or several, as ``KUBECONFIG`` lists them); "" where there is none."""
    named = os.environ.get("KUBECONFIG", "") or str(Path.home() / ".kube" / "config")
    return named if any(Path(each).exists() for each in named.split(os.pathsep) if each) else ""


@dataclass(frozen=True)
class Server:
    """A server that answered.

    Attributes:
        client: a ``kfp.Client``; call it inside ``talking``.
        multi_user: whether namespaces keep users apart; a single-user server takes none.
    """

    client: Any
    where: Address
    multi_user: bool
    namespace: str

    def link(self, kind: str, identity: str) -> str:
        """The page of a run or recurring run."""
        path = {"run": "runs/details", "recurring": "recurringrun/details", "pipeline": "pipelines/details"}[kind]
        page = os.environ.get(UI_ENDPOINT, "").rstrip("/") or self.where.host
        if page:
            return f"{page}/#/{path}/{identity}"
        return (
            f"http://localhost:8080/#/{path}/{identity} after "
            f"`kubectl port-forward -n {self.where.installed} svc/ml-pipeline-ui 8080:80`"
        )


def connect(where: Address, namespace: str = "") -> Server:
    """Connects and asks whether the server is well.

    Args:
        namespace: the user's namespace; used where the server has users.

    Raises:
        ServiceError: it does not answer in time, refuses, or is something else than Kubeflow Pipelines.
        ConfigError: the kubeconfig cannot be used.
    """
    found: list[Any] = []

    def work() -> None:
        try:
            client = _client(where)
            with talking(where):
                health = client._healthz_api.healthz_service_get_healthz(_request_timeout=(CONNECT_S, DEADLINE_S))
            found.append((client, bool(health.multi_user)))
        except BaseException as error:  # carried to the caller's thread
            found.append(error)

    # In a thread: a name server that does not answer takes longer than any deadline of a socket.
    thread = threading.Thread(target=work, name="kfp-connect", daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    if not found:
        raise ServiceError(f"{where.shown} does not answer within {DEADLINE_S:.0f} s", _REACH)
    if isinstance(found[0], BaseException):
        raise found[0]
    client, multi_user = found[0]
    # A namespace from an earlier `kfp` session (~/.config/kfp/context.json) is not what was asked for now.
    client._context_setting = {**client._context_setting, "namespace": namespace if multi_user else ""}
    return Server(client, where, multi_user, namespace if multi_user else "")


_REACH = "check HOST, the VPN or port-forward, and that the server runs"


def _client(where: Address) -> Any:
    import kfp
    import urllib3

    class Client(kfp.Client):  # type: ignore[misc]
        """Without KFP's five tries: ``connect`` asks once, with a deadline."""

        def _load_config(self, *args: Any, **kwargs: Any) -> Any:
            config = super()._load_config(*args, **kwargs)
            config.retries = urllib3.Retry(total=None, connect=0, read=0, redirect=3, status=0, other=0)
            return config

        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            import kfp_server_api

            return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)

    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            client = Client(
                host=where.host or None,
                namespace=where.installed,
                existing_token=where.token or None,
                cookies=where.cookie or None,
                ssl_ca_cert=os.environ.get("SSL_CERT_FILE") or None,
                proxy=_proxy(where.host),
            )
    except Exception as error:  # the kubeconfig's plugins raise anything
        raise ConfigError(
            f"no way to Kubeflow Pipelines: {first_line(error)}", "check the kubeconfig, or give HOST"
        ) from None
    if "Failed to load kube config" in said.getvalue():
        raise ConfigError("the kubeconfig cannot be used", "check KUBECONFIG and its current context, or give HOST")
    _with_deadlines(client._healthz_api.api_client.rest_client)
    return client


def _proxy(host: str) -> str | None:
    """The proxy that the environment names for a host; KFP's client looks for none by itself."""
    parts = urlsplit(host)
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _with_deadlines(rest: Any) -> None:
    """Gives every request a deadline, and looks whether an answer is the API's at all."""
    original = rest.request

    def request(*args: Any, **kwargs: Any) -> Any:
        kwargs["_request_timeout"] = kwargs.get("_request_timeout") or (CONNECT_S, READ_S)
        answer = original(*args, **kwargs)
        kind = str(getattr(answer, "urllib3_response", answer).headers.get("Content-Type", ""))
        if "html" in kind:
            raise _PageError(kind)
        return answer

    rest.request = request


class _PageError(Exception):
    """The answer is a web page."""


@contextlib.contextmanager
def talking(where: Address) -> Iterator[None]:
    """Around calls of the client: what it prints is dropped, what it raises becomes one of our errors.

    Raises:
        ServiceError: refused, not found, broken, silent, or no Kubeflow Pipelines at all.
    """
    import kfp_server_api
    import urllib3

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except AtelierError:
        raise
    except _PageError:
        raise ServiceError(
            f"{where.shown} answers with a web page, not with the API (a login page, or another address)",
            f"give a token in {TOKEN} or the login's cookie in {COOKIE}; HOST often ends in /pipeline",
        ) from None
    except kfp_server_api.ApiException as error:
        raise _refused(where, error) from None
    except urllib3.exceptions.HTTPError as error:
        raise _silent(where, first_line(getattr(error, "reason", None) or error)) from None
    except OSError as error:
        raise _silent(where, first_line(error)) from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ServiceError(
            f"{where.shown} gives an answer that is not Kubeflow Pipelines': {first_line(error)}",
            "check HOST; this client knows the API v2beta1 of KFP 2",
        ) from error


class Silent(ServiceError):
    """No answer came; what was asked for may have happened or not."""


class Refused(ServiceError):
    """The server said no.

    Attributes:
        status: HTTP's number.
    """

    def __init__(self, what: str, fix: str, status: int) -> None:
        super().__init__(what, fix)
        self.status = status


def _refused(where: Address, error: Any) -> ServiceError:
    status = int(error.status or 0)
    message = _message(error.body) or str(error.reason or "").split("\n")[0]
    if status == 0:
        return _silent(where, message)
    if "<html" in str(error.body or "").lower():
        message = "a web page"
    fixes = {
        401: f"log in: a token in {TOKEN}, the login's cookie in {COOKIE}, or --token-file",
        403: "ask for access to this namespace, or give another: NAMESPACE=",
        404: "check HOST (it often ends in /pipeline) and what was asked for",
        409: "it exists already; try again",
    }
    fix = fixes.get(status, "look at the log of ml-pipeline, and try again" if status >= 500 else "correct the request")
    return Refused(f"{where.shown} refuses (HTTP {status}): {message}", fix, status)


def _message(body: Any) -> str:
    """What a person can read of an error's body."""
    try:
        record = json.loads(body)
        text = str(record.get("message") or record.get("error") or "")
    except (ValueError, TypeError, AttributeError):
        text = ""
    return " ".join(text.split())[:300]


def _silent(where: Address, why: str) -> Silent:
    certificate = "SSL_CERT_FILE=<the file of your CA>, where the certificate is one of your own"
    return Silent(f"{where.shown} does not answer: {why}", certificate if "CERTIFICATE" in why else _REACH)


def first_line(error: Any) -> str:
    """An error's first line, without the object that urllib3 names before it."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.rpartition(">: ")[2][:300]
