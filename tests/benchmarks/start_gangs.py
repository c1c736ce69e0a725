"""A fresh Spark session whose first gang, and the next ones, are timed; a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable

from pyspark.sql import SparkSession

from sparktrain.gang import Gang
from sparktrain.testing import spark_session
from tests.benchmarks.children import serve


def allreduce() -> float:
    """Run one collective; return when it was done. TorchDistributor's ranks have to make their own group."""
    import time

    import torch
    import torch.distributed as dist

    is_ours = dist.is_initialized()
    if not is_ours:
        dist.init_process_group("gloo")
    value = torch.ones(1)
    dist.all_reduce(value)
    assert float(value) == dist.get_world_size()
    done = time.time()
    if not is_ours:
        dist.destroy_process_group()
    return done


def by_gang(spark: SparkSession) -> float:
    return max(Gang(spark, ranks=2).run(allreduce))


def by_distributor(spark: SparkSession) -> float:
    from pyspark.ml.torch.distributor import TorchDistributor

    return float(TorchDistributor(num_processes=2, local_mode=False, use_gpu=False).run(allreduce))


_WAYS: dict[str, tuple[Callable[[SparkSession], float], dict[str, str]]] = {
    "gang": (by_gang, {}),
    "gang, torch in the daemon": (by_gang, {"spark.python.daemon.module": "sparktrain.gang.daemon"}),
    "TorchDistributor": (by_distributor, {}),
}


def answer(way: str, runs: int) -> list[tuple[float, float]]:
    """Start Spark, and run so often: seconds to the first collective done, and to the return."""
    run, settings = _WAYS[way]
    found = []
    with spark_session("local[2]", **settings) as spark:
        spark.range(10).count()  # Spark's own start is not what is compared
        for _ in range(runs):
            started = time.time()
            collective = run(spark)
            found.append((collective - started, time.time() - started))
    return found


if __name__ == "__main__":
    serve(answer)
