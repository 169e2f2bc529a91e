"""Uploads in parts, against real servers."""

import os
from pathlib import Path

import pytest

from atelier.storage import multipart, s3

PART = 5 * 2**20  # S3's smallest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(3 * PART + 12345))
    return path


def test_a_large_file_arrives(s3_bucket: str, file: Path) -> None:
    bucket, key = s3.split(s3_bucket + "/large")
    assert multipart.upload(s3.client(), file, bucket, key, PART) == file.stat().st_size
    assert s3.read_bytes(s3_bucket + "/large") == file.read_bytes()


def test_an_upload_that_was_cut_off_goes_on(s3_bucket: str, file: Path) -> None:
    """Part 1 is there; part 2 is there but of an older file; the rest is not."""
    bucket, key = s3.split(s3_bucket + "/large")
    client, data = s3.client(), file.read_bytes()
    begun = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    for number, part in ((1, data[:PART]), (2, bytes(PART))):
        client.upload_part(Bucket=bucket, Key=key, UploadId=begun, PartNumber=number, Body=part)
    sent = multipart.upload(client, file, bucket, key, PART)
    assert s3.read_bytes(s3_bucket + "/large") == data
    # s3rver knows no list of unfinished uploads: there everything is sent again.
    lists = os.environ["AWS_ACCESS_KEY_ID"] != "S3RVER"
    assert sent == len(data) - (PART if lists else 0)


def test_parts_grow_with_the_file(s3_bucket: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of them than S3 takes; how many there were stands in the object's tag."""
    monkeypatch.setattr(multipart, "MAX_PARTS", 2)
    bucket, key = s3.split(s3_bucket + "/large")
    multipart.upload(s3.client(), file, bucket, key, PART)
    assert s3.read_bytes(s3_bucket + "/large") == file.read_bytes()
    tag = s3.client().head_object(Bucket=bucket, Key=key)["ETag"].strip('"')
    assert tag.endswith("-2") or os.environ["AWS_ACCESS_KEY_ID"] == "S3RVER"  # which tags by content
