"""The same run with its artifacts on S3 (every server of tests/servers.py)."""

import boto3

from tests.servers import BUCKET, S3Server

from .conftest import Project


def test_run_cached_and_healed_on_s3(project: Project, s3_server: S3Server) -> None:
    place = f"{s3_server.uri}/runs/{project.root.name}"
    code, text = project.call("run", "tiny", ATELIER_ARTIFACTS=place, **s3_server.env)
    assert code == 0, text
    assert all(uri.startswith(place) for uri in project.summary()["artifacts"].values())
    code, text = project.call("run", "tiny", ATELIER_ARTIFACTS=place, **s3_server.env)
    assert code == 0, text
    assert [step["cached"] for step in project.summary()["steps"]] == [True, True, True]

    # an object that somebody deleted makes its step run again, and only that
    env = s3_server.env
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_DEFAULT_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
    )
    gone = project.summary()["artifacts"]["numbers"].removeprefix(f"s3://{BUCKET}/") + "/numbers.json"
    client.delete_object(Bucket=BUCKET, Key=gone)
    code, text = project.call("run", "tiny", ATELIER_ARTIFACTS=place, **s3_server.env)
    assert code == 0, text
    assert [step["cached"] for step in project.summary()["steps"]] == [False, True, True]


def test_a_bucket_that_is_not_there_and_a_dead_server_are_refused_at_once(
    project: Project, s3_server: S3Server
) -> None:
    code, text = project.call("run", "tiny", ATELIER_ARTIFACTS="s3://no-such-bucket/x", **s3_server.env)
    assert code in (4, 5), text
    assert "no-such-bucket" in text
    dead = s3_server.env | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    code, text = project.call("run", "tiny", ATELIER_ARTIFACTS="s3://bucket/x", **dead)
    assert code in (4, 5), text
    assert "127.0.0.1:9" in text
    assert "Traceback" not in text
    assert not project.runs()
