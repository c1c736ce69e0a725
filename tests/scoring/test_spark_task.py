"""What a Spark task was granted is what the model runs on; stand-ins for the task, which has no GPU here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from sparktrain.errors import DeviceUnknown, GpuUnusable
from sparktrain.scoring import spark_task
from sparktrain.scoring.model import ServedModel
from sparktrain.scoring.spark_task import device_and_threads, session_time_zone
from tests.fixtures.rich_model import RAW

CPU = torch.device("cpu")


@dataclass
class Granted:
    addresses: list[str]


@dataclass
class StandIn:
    """As much of a TaskContext as is asked."""

    gpus: list[str] | None = None
    num_cpus: float = 1
    properties: dict[str, str] = field(default_factory=dict)

    def cpus(self) -> float:
        return self.num_cpus

    def resources(self) -> dict[str, Granted]:
        return {} if self.gpus is None else {"gpu": Granted(self.gpus)}

    def getLocalProperty(self, name: str) -> str | None:
        return self.properties.get(name)


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_outside_of_a_spark_task_nothing_is_changed(threads: int) -> None:
    assert device_and_threads() == CPU and torch.get_num_threads() == threads
    assert session_time_zone() is None


@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("gpus", [None, []])
def test_torch_has_as_many_threads_as_the_task_has_cpus(
    monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: list[str] | None
) -> None:
    task = StandIn(gpus, cpus, {"spark.sql.session.timeZone": "Asia/Tokyo"})
    monkeypatch.setattr(spark_task, "_context", lambda: task)
    assert device_and_threads() == CPU and torch.get_num_threads() == cpus
    assert session_time_zone() == "Asia/Tokyo"


def test_a_part_of_a_cpu_is_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_task, "_context", lambda: StandIn(num_cpus=0.25))
    assert device_and_threads() == CPU and torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("address", "visible", "index"),
    [("2", None, 2), ("3", "2,3", 1), ("MIG-b", "MIG-a,MIG-b", 1), ("0", "0", 0)],
)
def test_the_granted_gpu_is_the_one_that_the_model_runs_on(
    monkeypatch: pytest.MonkeyPatch, address: str, visible: str | None, index: int
) -> None:
    monkeypatch.setattr(spark_task, "_context", lambda: StandIn([address]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_and_threads() == torch.device("cuda", index)


def test_a_granted_gpu_that_torch_can_not_use_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(spark_task, "_context", lambda: StandIn(["1"]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        GpuUnusable, match=r"the GPU '1'; torch .* sees 0 there\. Install a build .* with CUDA"
    ):
        device_and_threads()
    monkeypatch.setattr(spark_task, "_context", lambda: StandIn(["MIG-c"]))
    with pytest.raises(DeviceUnknown, match="MIG-c"):
        device_and_threads()


def test_module_and_batches_are_both_on_the_device(rich: Path) -> None:
    meta = torch.device("meta")  # a device without memory, which every build has
    model = ServedModel.load(rich / "artifacts", rich / "code", meta)
    assert {parameter.device for parameter in model.module.parameters()} == {meta}
    batch = model._to_tensors(model.features.transform(RAW))
    assert len(batch) > 10 and {tensor.device for tensor in batch.values()} == {meta}
