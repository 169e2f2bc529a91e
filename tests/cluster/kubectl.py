"""kubectl against one API server, as its administrator or as a service account."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kubectl:
    """``token`` of a service account; "" is the kubeconfig's own user."""

    kubeconfig: Path
    token: str = ""

    def run(self, *arguments: str, given: str | None = None) -> "subprocess.CompletedProcess[str]":
        """The finished command, whatever its exit code."""
        who = ["--token", self.token] if self.token else []
        return subprocess.run(
            ["kubectl", "--kubeconfig", str(self._config()), *who, *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def _config(self) -> Path:
        """A token counts only where the kubeconfig has no credentials of its own."""
        if not self.token:
            return self.kubeconfig
        return self.write_config(self.kubeconfig.with_name("kubeconfig-without-user"), {})

    def write_config(self, path: Path, user: dict[str, str]) -> Path:
        """A kubeconfig of this server with another user, e.g. ``{"token": …}``."""
        shown = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.kubeconfig), "config", "view", "--raw", "--output=json"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        config = json.loads(shown)
        for entry in config["users"]:
            entry["user"] = user
        path.write_text(json.dumps(config))
        return path

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        """Its output; fails the test where it fails."""
        done = self.run(*arguments, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """An object, or a list of them."""
        return json.loads(self("get", *arguments, "--output=json"))

    def as_account(self, namespace: str, name: str) -> "Kubectl":
        """The same server with a fresh token of a service account."""
        return Kubectl(self.kubeconfig, self("create", "token", name, "--namespace", namespace).strip())
