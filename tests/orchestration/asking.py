"""What the tests of submit and schedule ask for: a profile of a team's own, and a request on the test server."""

from pathlib import Path
from typing import Any

from atelier.orchestration.submit import Request
from tests.orchestration import kfp_server

PROJECT = Path(__file__).parents[2]
DIGEST = "sha256:" + "5e" * 32
OWN = """
recipe_profile: paper
namespace: team
experiment: nightly
artifacts: s3://bucket/prefix
pipeline_root: s3://bucket/kfp
images:
  references: {{{references}}}
"""


def ask(server: kfp_server.State, own: str, **changes: Any) -> Request:
    given = {"pipeline": "igligen_xl_512", "profile": own, "host": server.url}
    return Request(**{**given, **changes})
