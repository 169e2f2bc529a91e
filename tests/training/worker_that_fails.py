"""A rank's module that fails at once, in the way its argument says."""

import sys

from atelier.errors import DataError

print("this is the last thing it said", flush=True)
if sys.argv[1] == "ours":
    raise DataError("shard 7 is truncated", "make it again")
raise ValueError("nobody expected this")
