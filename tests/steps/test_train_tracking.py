"""Which MLflow server the ranks are told of."""

from types import SimpleNamespace
from typing import Any

import pytest

from atelier.steps.train import _tracking


def context(uri: str, run: str | None = "r1") -> Any:
    return SimpleNamespace(track=SimpleNamespace(uri=uri, run_id=lambda: run))


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://mlflow.atelier:5000", "http://mlflow.atelier:5000"),
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("https://me:hidden@mlflow.example.com", ""),
    ],
)
def test_a_password_does_not_get_into_the_plan(uri: str, told: str) -> None:
    """The plan may be an object in a bucket; the ranks have the variable themselves."""
    assert _tracking(context(uri)) == {"uri": told, "run_id": "r1"}


def test_no_run_is_no_tracking() -> None:
    assert _tracking(context("http://x", None)) is None
