"""Fixtures for every test."""

from tests.servers import s3_bucket, s3_server, web

__all__ = ["s3_bucket", "s3_server", "web"]
