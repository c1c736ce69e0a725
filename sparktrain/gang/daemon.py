"""Spark's Python daemon with torch in it: every Python worker that it forks has torch imported already.

For `spark.python.daemon.module=sparktrain.gang.daemon`, where executors have sparktrain installed. Without it
each new worker takes its own two seconds, the first time and after every worker that was killed.
"""

from __future__ import annotations

import importlib
from contextlib import suppress

from pyspark.daemon import manager


def main() -> None:
    with suppress(Exception):  # whoever needs it will say so, where people can read it
        # What every gang needs, and no more: a larger process takes longer to fork.
        importlib.import_module("sparktrain.gang.rendezvous")
    manager()


if __name__ == "__main__":
    main()
