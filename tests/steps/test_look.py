"""A scheduled run looks first: the same data end it, other data and other times do not."""

import os
import time
from pathlib import Path
from typing import Any

import boto3
import pytest

from atelier.steps import look, source
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest
from atelier.tracking.registry import register
from tests.servers import BUCKET
from tests.tracking.conftest import empty_store, store  # noqa: F401  fixtures

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("ATELIER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path))
    return tmp_path


def step(name: str, artifacts: str, **inputs: Manifest) -> Manifest:
    """A step of that name that only knows where it comes from."""

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        (ctx.out.path / "x").write_text(name)
        return name, {}

    return run_step(
        name=name,
        version=1,
        module="atelier.steps.source",
        produce=produce,
        inputs=inputs,
        params={},
        artifacts=artifacts,
    )


def trained(artifacts: str, **given: Any) -> Manifest:
    """A registered champion, with every manifest between it and its data."""
    nothing = {"tars": "", "captions": "", "boxes": "", "images": 0, "seed": 0}
    origin = source.run(**nothing | given, artifacts=artifacts)
    raw = step("download", artifacts, source=origin)
    base = step("base", artifacts)
    shards = step("preprocess", artifacts, raw=raw, base=base)
    training = step("train", artifacts, shards=shards, base=base)
    model = step("convert", artifacts, training=training, base=base)
    register("probe", model.uri, None, {}, {}, passed=True)
    return origin


def verdict(addresses: dict[str, str], **changes: Any) -> tuple[str, str]:
    return look.verdict(**{"addresses": addresses, "images": 8, "seed": 1, "name": "probe", **changes})


def files(folder: Path) -> dict[str, str]:
    folder.mkdir()
    for name in ("sa_000.tar", "sa_001.tar", "captions.parquet", "boxes.json"):
        (folder / name).write_text(name)
    return {"tars": f"{folder}/*.tar", "captions": f"{folder}/captions.parquet", "boxes": f"{folder}/boxes.json"}


def test_local_data(tmp_path: Path) -> None:
    given = files(tmp_path / "data")
    assert verdict(given) == ("go", "probe has no champion yet")
    origin = trained(str(tmp_path / "artifacts"), **given)
    said, why = verdict({**given, "latents": ""})
    assert said == "stop"
    assert "models:/probe/1 (champion)" in why
    assert origin.digest in why
    assert verdict(given, only_if_new=False)[0] == "go"
    assert verdict({**given, "tars": f"{tmp_path}/data/sa_000.tar"})[0] == "go"
    (tmp_path / "data" / "sa_002.tar").write_text("new")
    said, why = verdict(given)
    assert said == "go"
    assert "not those of models:/probe/1" in why
    (tmp_path / "data" / "sa_002.tar").unlink()
    assert verdict(given)[0] == "stop"
    (tmp_path / "data" / "sa_001.tar").write_text("written anew")
    os.utime(tmp_path / "data" / "sa_001.tar", (time.time() + 5, time.time() + 5))
    assert verdict(given)[0] == "go"


def test_a_bucket_that_changed_is_other_data_for_the_source_too(s3_bucket: str, tmp_path: Path) -> None:
    client = boto3.session.Session().client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    prefix = s3_bucket.removeprefix(f"s3://{BUCKET}/")
    for name in ("raw/a.tar", "raw/c.parquet", "raw/b.json"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=name.encode())
    given = {
        "tars": f"{s3_bucket}/raw/*.tar", "captions": f"{s3_bucket}/raw/c.parquet", "boxes": f"{s3_bucket}/raw/b.json",
    }  # fmt: skip
    first = trained(f"{s3_bucket}/artifacts", **given)
    assert verdict(given)[0] == "stop"
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/raw/a.tar", Body=b"written anew")
    assert verdict(given)[0] == "go"
    again = source.run(**given, images=0, seed=0, artifacts=f"{s3_bucket}/artifacts")
    assert again.digest != first.digest, "or the download would be taken from the cache"
    assert source.run(**given, images=0, seed=0, artifacts=f"{s3_bucket}/artifacts") == again


def test_drawn_digits_are_the_same_by_number_and_seed(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    trained(str(tmp_path / "artifacts"), images=8, seed=1)
    assert verdict({})[0] == "stop"
    assert verdict({}, images=9)[0] == "go"
    assert verdict({}, seed=2)[0] == "go"


def test_a_champion_whose_past_was_removed_is_no_reason_to_stop(tmp_path: Path) -> None:
    given = files(tmp_path / "data")
    origin = trained(str(tmp_path / "artifacts"), **given)
    (Path(origin.uri) / "manifest.json").unlink()
    assert verdict(given)[0] == "go"


def test_published_addresses_are_told_apart_by_themselves(tmp_path: Path) -> None:
    given = {
        "tars": "https://x.invalid/a.tar",
        "captions": "hf://datasets/x/c.parquet",
        "boxes": "https://x.invalid/b.json",
    }
    trained(str(tmp_path / "artifacts"), **given)
    assert verdict(given)[0] == "stop"
    assert verdict({**given, "boxes": "https://x.invalid/b2.json"})[0] == "go"


@pytest.mark.parametrize(
    ("scheduled_at", "said"),
    [
        ("20260119020000", "go"),  # a Monday in winter: 03:00 in Berlin
        ("20260119010000", "stop"),
        ("20260720010000", "go"),  # in summer
        ("20260720020000", "stop"),
        ("20260120020000", "stop"),  # a Tuesday
    ],
)
def test_only_the_hour_that_was_meant(scheduled_at: str, said: str) -> None:
    found, why = verdict({}, cron="0 3 * * 1", timezone="Europe/Berlin", scheduled_at=scheduled_at)
    assert found == said, why
    if said == "stop":
        assert "is no time of '0 3 * * 1'" in why


def test_a_time_that_comes_twice_counts_once() -> None:
    twice = ["20261025003000", "20261025013000"]  # 02:30 in Berlin, both
    found = [verdict({}, cron="30 2 * * *", timezone="Europe/Berlin", scheduled_at=each)[0] for each in twice]
    assert found == ["go", "stop"]


def test_without_a_time_from_kubeflow_the_hour_before_now_counts() -> None:
    assert verdict({}, cron="*/30 * * * *", timezone="UTC", scheduled_at="[[ScheduledTime]]")[0] == "go"
    month = time.gmtime().tm_mon % 12 + 1
    assert verdict({}, cron=f"0 0 1 {month} *", timezone="UTC", scheduled_at="")[0] == "stop"
