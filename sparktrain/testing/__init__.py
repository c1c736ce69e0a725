"""What tests of sparktrain need, and tests of pipelines built on it."""

from __future__ import annotations

from sparktrain.gang.local import run_ranks
from sparktrain.testing.daemons import ConnectServer, StandaloneCluster
from sparktrain.testing.sessions import spark_session
from sparktrain.testing.tiny_dataset import TargetKind, write_tiny_dataset

__all__ = [
    "ConnectServer",
    "StandaloneCluster",
    "TargetKind",
    "run_ranks",
    "spark_session",
    "write_tiny_dataset",
]
