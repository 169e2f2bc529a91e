"""Fixtures for every test, and how many run side by side."""

import os
import signal

# A shell starts `make test &` with SIGINT ignored, and so would every process that the tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before torch is imported anywhere: several tests share the cores, and idle OpenMP threads that spin would take them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.servers import s3_bucket, s3_server, web

__all__ = ["s3_bucket", "s3_server", "web"]


def pytest_xdist_auto_num_workers() -> int:
    """``-n auto``: one more than cores, since a good part of the tests wait for servers and for processes to end."""
    return min(len(os.sched_getaffinity(0)) + 1, 8)
