"""The property files under conf/spark/: Spark knows every name in them, and can read every value."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyspark
import pytest
from py4j.protocol import Py4JJavaError
from pyspark import SparkConf
from pyspark.java_gateway import launch_gateway

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "conf" / "spark").glob("*.conf"))
FIND_GPUS = ROOT / "conf" / "spark" / "find-gpus.sh"

# Where Spark registers what it knows, when these are loaded.
REGISTRIES = (
    "org.apache.spark.internal.config.package$",
    "org.apache.spark.internal.config.Python$",
    "org.apache.spark.internal.config.Worker$",
    "org.apache.spark.internal.config.UI$",
    "org.apache.spark.deploy.k8s.Config$",
    "org.apache.spark.deploy.yarn.config.package$",
    "org.apache.spark.sql.internal.SQLConf$",
)
VOLUME = re.compile(r"(spark\.kubernetes\.(?:driver|executor)\.volumes\.)\w+\.\w+\..+")
RESOURCE = re.compile(r"(spark\.(?:executor|task))\.resource\.gpu\.(\w+)")


@pytest.fixture(scope="module")
def jvm() -> Iterator[Any]:
    """Spark's classes, without a session."""
    gateway = launch_gateway(SparkConf(loadDefaults=False).set("spark.master", "local"))
    try:
        for name in REGISTRIES:
            gateway.jvm.java.lang.Class.forName(name)
        yield gateway.jvm
    finally:
        gateway.shutdown()
        gateway.proc.stdin.close()  # by which it knows that nobody needs it
        gateway.proc.wait(30)


def properties(file: Path) -> dict[str, str]:
    """Name and value of each property, of those that stand in a comment to be taken in as well."""
    found = re.findall(r"^(?:# )?(spark\.[\w.]+) +(\S.*?) *$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(dict(found)), f"a name twice in {file}"
    return dict(found)


def problems(jvm: Any, given: Mapping[str, str]) -> dict[str, str]:
    """What Spark makes nothing of, by name."""
    conf = jvm.org.apache.spark.SparkConf(False)
    for name, value in given.items():
        conf.set(name, value)
    found = {}
    for name, value in given.items():
        try:
            if not _is_read(jvm, conf, name, value):
                found[name] = "unknown to Spark"
        except Py4JJavaError as error:
            found[name] = str(error.java_exception.getMessage())
    return found


def _is_read(jvm: Any, conf: Any, name: str, value: str) -> bool:
    if name == "spark.master":  # the one name that Spark does not register
        return re.fullmatch(r"local\[\d+\]", value) is not None
    if name.startswith("spark.executorEnv."):
        return bool(re.fullmatch(r"[A-Z_]+", name.removeprefix("spark.executorEnv.")))
    if match := VOLUME.fullmatch(name):
        util = jvm.org.apache.spark.deploy.k8s.KubernetesVolumeUtils
        return (
            re.search(rf"[(,]{re.escape(value)}[),]", util.parseVolumesWithPrefix(conf, match[1]).toString())
            is not None
        )
    if match := RESOURCE.fullmatch(name):
        [request] = _each(
            jvm.org.apache.spark.resource.ResourceUtils.parseAllResourceRequests(conf, match[1])
        )
        asked = {"amount": str(request.amount())}
        asked |= {key: getattr(request, key)().orElse(None) for key in ("discoveryScript", "vendor")}
        return asked.get(match[2]) == value
    entry = jvm.org.apache.spark.internal.config.ConfigEntry.findEntry(name)
    # There and back again: a number that Python has no word for stays with Spark.
    return (
        entry is not None and entry.valueConverter().andThen(entry.stringConverter()).apply(value) is not None
    )


def _each(sequence: Any) -> list[Any]:
    return [sequence.apply(number) for number in range(sequence.size())]


@pytest.mark.spark
@pytest.mark.timeout(120)
@pytest.mark.skipif(pyspark.__version__ < "4", reason="the files are for Spark 4; 3.5 ignores what it lacks")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_spark_knows_each_name_and_reads_each_value(jvm: Any, file: Path) -> None:
    given = properties(file)
    assert len(given) >= 5
    assert problems(jvm, given) == {}


@pytest.mark.spark
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("spark.executor.core", "8"),
        ("spark.executor.cores", "many"),
        ("spark.executor.memory", "2 gigs"),
        ("spark.python.worker.killOnIdleTimout", "false"),
        ("spark.executor.resource.gpu.amout", "2"),
        ("spark.kubernetes.executor.volumes.persistentVolumeClaim.data.mount.pth", "/data"),
        ("spark.kubernetes.executor.volumes.persistentVolumeClaims.data.mount.path", "/data"),
    ],
)
def test_a_wrong_name_or_value_would_be_found(jvm: Any, name: str, value: str) -> None:
    right = properties(ROOT / "conf" / "spark" / "kubernetes.conf")
    given = {
        key: text for key, text in right.items() if VOLUME.fullmatch(name) is None or "data.mount" not in key
    }
    assert name in problems(jvm, given | {name: value})


def test_barrier_stages_are_possible_and_long_trainings_are_left_alone() -> None:
    for file in FILES:
        given = properties(file)
        assert given["spark.python.worker.killOnIdleTimeout"] == "false", file
        assert "spark.executor.pyspark.memory" not in given, file
        if file.stem != "local":
            assert given["spark.dynamicAllocation.enabled"] == "false", file
            assert given["spark.excludeOnFailure.enabled"] == "false", file


def nvidia_smi(folder: Path, body: str) -> Mapping[str, str]:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.parametrize("gpus", [["0"], ["0", "1"], [str(n) for n in range(12)]], ids=len)
def test_the_discovery_script_tells_the_gpus_as_spark_wants_it(gpus: list[str], tmp_path: Path) -> None:
    env = nvidia_smi(tmp_path, f"printf '%s\\n' {' '.join(gpus)}")
    done = subprocess.run([FIND_GPUS], env=env, capture_output=True, text=True, timeout=20, check=True)
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": gpus}


def test_the_discovery_script_fails_where_the_driver_does(tmp_path: Path) -> None:
    env = nvidia_smi(tmp_path, "echo 'No devices were found' >&2; exit 6")
    done = subprocess.run([FIND_GPUS], env=env, capture_output=True, text=True, timeout=20)
    assert done.returncode != 0 and done.stdout == "" and "No devices" in done.stderr
