"""From `run()` to its return with one allreduce in between: our gang beside TorchDistributor."""

from __future__ import annotations

import time

import torch
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from sparktrain.gang import Gang
from tests.benchmarks.tables import median_seconds, print_table


def one_allreduce() -> float:
    import torch.distributed as dist

    ours = dist.is_initialized()
    if not ours:
        dist.init_process_group("gloo")
    value = torch.ones(1)
    dist.all_reduce(value)
    if not ours:
        dist.destroy_process_group()
    return float(value)


def test_gang_beside_torch_distributor(spark: SparkSession) -> None:
    started = time.perf_counter()
    assert Gang(spark, ranks=2).run(one_allreduce) == [2.0, 2.0]
    cold = time.perf_counter() - started
    distributor = TorchDistributor(num_processes=2, local_mode=False, use_gpu=False)
    seconds = median_seconds(
        {
            "TorchDistributor": lambda: distributor.run(one_allreduce),
            "Gang, warm": lambda: Gang(spark, ranks=2).run(one_allreduce),
        },
        rounds=3,
    )
    print_table(f"2 ranks, one allreduce (the gang's first, cold: {cold:.2f} s)", seconds, "TorchDistributor")
