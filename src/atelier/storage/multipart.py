"""Uploads of large files in parts: several at a time, and an upload that was cut off goes on with the parts it has."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PART_BYTES = 16 * 2**20
MAX_PARTS = 10_000
AT_ONCE = 8


def upload(client: Any, path: Path, bucket: str, key: str, part_bytes: int = PART_BYTES) -> int:
    """Puts a file as an object, which appears whole or not at all.

    An unfinished upload to the same key, left by an earlier try, is taken up: a part counts as there when its size and
    MD5 are those of the file's part. Where the server lists no uploads, or encrypts so that it tells no MD5, everything
    is sent again.

    Args:
        client: a boto3 S3 client.
        part_bytes: grows where the file would need more than 10,000 parts.

    Returns:
        How many bytes were sent.

    Raises:
        botocore's errors, after its own retries; the parts that arrived stay for the next try.
    """
    size = path.stat().st_size
    if size <= part_bytes:
        with path.open("rb") as file:
            client.put_object(Bucket=bucket, Key=key, Body=file)
        return size
    part_bytes = max(part_bytes, -(-size // MAX_PARTS))
    count = -(-size // part_bytes)
    upload_id, there = _unfinished(client, bucket, key)
    if upload_id is None:
        upload_id = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]

    def send(number: int) -> tuple[dict[str, Any], int]:
        with path.open("rb") as file:
            file.seek((number - 1) * part_bytes)
            data = file.read(part_bytes)
        known = there.get(number)
        if known == (len(data), hashlib.md5(data, usedforsecurity=False).hexdigest()):
            return {"PartNumber": number, "ETag": f'"{known[1]}"'}, 0
        answer = client.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=data)
        return {"PartNumber": number, "ETag": answer["ETag"]}, len(data)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload") as pool:
        done = list(pool.map(send, range(1, count + 1)))
    client.complete_multipart_upload(
        Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": [part for part, _ in done]}
    )
    return sum(sent for _, sent in done)


def _unfinished(client: Any, bucket: str, key: str) -> tuple[str | None, dict[int, tuple[int, str]]]:
    """The newest unfinished upload to ``key`` and its parts: number → (bytes, MD5)."""
    from botocore.exceptions import ClientError

    try:
        found = client.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", [])
        mine = [upload for upload in found if upload["Key"] == key]
        if not mine:
            return None, {}
        newest = max(mine, key=lambda upload: upload["Initiated"])["UploadId"]
        pages = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=newest)
        return newest, {
            int(part["PartNumber"]): (int(part["Size"]), str(part["ETag"]).strip('"'))
            for page in pages
            for part in page.get("Parts", [])
        }
    except ClientError:
        return None, {}  # no such list here, or the upload was aborted meanwhile


def abort_all(client: Any, bucket: str, prefix: str) -> None:
    """Gives up the unfinished uploads to keys that begin with ``prefix``; none where the server lists no uploads."""
    from botocore.exceptions import ClientError

    try:
        found = [
            upload
            for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
            for upload in page.get("Uploads", [])
        ]
    except ClientError:
        return
    for upload in found:
        # A server may look at the prefix loosely.
        if upload["Key"].startswith(prefix):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
