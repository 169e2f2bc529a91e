"""A rank's module that fails at once, in the way its argument says."""

import subprocess
import sys
from pathlib import Path

from atelier.errors import DataError

print("this is the last thing it said", flush=True)
if sys.argv[1] == "ours":
    raise DataError("shard 7 is truncated", "make it again")
if sys.argv[1] == "child":
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(sys.argv[2]).write_text(str(child.pid))
raise ValueError("nobody expected this")
