"""Spark's Python daemon with torch in it: every Python worker that it forks has torch imported already.

For `spark.python.daemon.module=sparktrain.gang.daemon`, where executors have sparktrain installed. Without it
each new worker takes its own two seconds, the first time and after every worker that was killed.
"""

from __future__ import annotations

import importlib
from contextlib import suppress

from pyspark.daemon import manager

# What takes longest of all that a training rank imports.
PRELOAD = ("sparktrain.gang.rendezvous", "sparktrain.gang.rank", "torch._dynamo", "pandas")


def main() -> None:
    for module in PRELOAD:
        with suppress(Exception):  # whoever needs it will say so, where people can read it
            importlib.import_module(module)
    manager()


if __name__ == "__main__":
    main()
