"""doctor: what would make a run fail, found in seconds before one is launched, each with its way out."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

from pyspark.sql import SparkSession

from sparktrain import versions
from sparktrain.config import Config
from sparktrain.errors import SparktrainError, VersionsDiffer
from sparktrain.gang.probe import Answer, Probe, ProbeTimeout, ask_executors
from sparktrain.gang.settings import harmful_settings
from sparktrain.gang.slots import check_slots, num_slots, profile_of_rank
from sparktrain.object_store import shown
from sparktrain.runs.connection import check_tracking, resolve_tracking_uri, without_secrets
from sparktrain.session import find_java, is_connect, spark_session
from sparktrain.storage import writable_directory


class Finding(TypedDict):
    """One line of the answer; `level` is "ok", "warning" or "error"."""

    level: str
    what: str
    found: str
    way_out: str


def examine(config: Config) -> list[Finding]:
    """Look at this machine, the storage, MLflow, the pipeline, and at Spark with its executors."""
    findings = [
        *([] if is_connect(config) else [_ask("Java", lambda: f"Java {find_java()}")]),
        _ask("storage", lambda: f"can write to {writable_directory(config.storage.root)}"),
        _ask("MLflow", partial(_tracking, config)),
        _ask("pipeline", partial(_pipeline, config)),
    ]
    (tracking,) = (finding for finding in findings if finding["what"] == "MLflow")
    if tracking["level"] == "error" and not config.tracking.required:
        tracking["level"] = "warning"
    if any(f["level"] == "error" for f in findings if f["what"] in ("Java", "storage")):
        return findings  # Spark can't start without either
    try:
        with spark_session(config) as spark:
            return [*findings, *_examine_spark(config, spark)]
    except SparktrainError as error:
        return [*findings, _error("Spark", error)]


def _examine_spark(config: Config, spark: SparkSession) -> Iterator[Finding]:
    train = config.train
    harms = list(harmful_settings(spark, train))
    for harm in harms:
        yield {"level": harm.level, "what": harm.setting, "found": harm.found, "way_out": harm.way_out}
    slots = _ask("slots", partial(_slots, config, spark))
    yield slots
    # A stage that can't start would only be waited for.
    if slots["level"] != "error" and not any(harm.level == "error" for harm in harms):
        yield from examine_executors(config, spark)


def _slots(config: Config, spark: SparkSession) -> str:
    train = config.train
    profile = profile_of_rank(spark, train.cpus_per_rank, train.gpus_per_rank)
    check_slots(spark, train.ranks, profile)
    slots = num_slots(spark, profile)
    return f"{train.ranks} ranks, {'unknown' if slots is None else slots} slots"


def examine_executors(config: Config, spark: SparkSession) -> Iterator[Finding]:
    """Ask as many Spark tasks as there are ranks: versions, storage, network, GPUs."""
    train = config.train
    name, elsewhere = f"doctor-{secrets.token_hex(8)}", config.storage.checkpoints
    directory = config.storage.root.resolve() / name
    directories = [directory]
    if elsewhere is not None and "://" not in elsewhere:
        elsewhere = str(Path(elsewhere).resolve() / f"{name}-checkpoints")
        directories.append(Path(elsewhere))
    probe = Probe(str(directory), secrets.token_hex(8), gpus=train.gpus_per_rank > 0, checkpoints=elsewhere)
    try:
        for each in directories:
            each.mkdir(parents=True)
            (each / "nonce").write_text(probe.nonce)
        profile = profile_of_rank(spark, train.cpus_per_rank, train.gpus_per_rank)
        answers = ask_executors(spark, train.ranks, probe, profile)
        written = [{file.name for file in each.iterdir()} for each in directories]
    except Exception as error:  # whatever Spark says, such as another minor version of Python
        yield _not_answered(error)
        return
    finally:
        for each in directories:
            shutil.rmtree(each, ignore_errors=True)
    yield from _compare_versions(answers)
    root = str(config.storage.root.resolve())
    yield _shared_directory(
        "run directory", root, {a.rank: a.directory for a in answers}, answers, written[0]
    )
    if elsewhere is not None:
        said = {answer.rank: answer.checkpoints for answer in answers}
        place = shown(config.storage.checkpoints or "")
        yield _shared_directory(
            "checkpoints", place, said, answers, written[-1] if len(written) > 1 else None
        )
    yield _network(answers)
    if probe.gpus:
        yield _gpus(answers)


def _not_answered(error: Exception) -> Finding:
    text = str(error)
    if "PYTHON_VERSION_MISMATCH" in text or "Python in worker has different version" in text:
        found = "run another minor version of Python than the driver"
        way_out = "point PYSPARK_PYTHON (spark.pyspark.python) to the same Python everywhere"
    elif "No module named 'pyarrow'" in text or "PACKAGE_NOT_INSTALLED" in text:
        found = "have no pyarrow"
        way_out = "give every executor the driver's environment: the same image, or spark.archives"
    elif isinstance(error, ProbeTimeout):
        found = f"did not answer: {error}"
        way_out = "look whether other jobs hold the slots, and into the executors' logs"
    else:
        found = f"did not answer: {_telling_line(text) or type(error).__name__}"
        way_out = "look into the executors' logs"
    return {"level": "error", "what": "executors", "found": found, "way_out": way_out}


def _telling_line(text: str) -> str:
    """Of all that Spark says: the error of the Python worker if there is one, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    raised = [
        line for line in lines if re.match(r"(?!org\.|java\.|py4j\.)[\w.]*(Error|Exception)\b.*: ", line)
    ]
    return (raised or lines or [""])[0][:300]


def _compare_versions(answers: Sequence[Answer]) -> Iterator[Finding]:
    here = versions.here()
    there = {f"rank {answer.rank} on {answer.host}": answer.versions for answer in answers}
    try:
        warnings = versions.compare(here, there)
    except VersionsDiffer as error:
        found, _, way_out = str(error).partition("Way out: ")
        yield {"level": "error", "what": "executors", "found": found.strip(), "way_out": way_out}
        return
    for warning in warnings:
        way_out = "nothing needs to be done; the same environment everywhere is better"
        yield {"level": "warning", "what": "executors", "found": warning, "way_out": way_out}
    if not warnings:
        found = ", ".join(f"{name} {version}" for name, version in here.items())
        yield {"level": "ok", "what": "executors", "found": found, "way_out": ""}


def _shared_directory(
    what: str, place: str, said: Mapping[int, str], answers: Sequence[Answer], written: Collection[str] | None
) -> Finding:
    """Tell whether all use the same directory; `written` is what the driver sees there, None in a store."""
    wrong = {rank: problem for rank, problem in said.items() if problem}
    wrong |= {
        rank: "is a directory of its own there: the driver does not see what is written"
        for rank, problem in said.items()
        if written is not None and not problem and f"rank-{rank}" not in written
    }
    if not wrong:
        return {"level": "ok", "what": what, "found": f"driver and executors share {place}", "way_out": ""}
    host = {answer.rank: answer.host for answer in answers}
    found = "; ".join(f"for rank {rank} on {host[rank]} {place} {problem}" for rank, problem in wrong.items())
    key = "storage.root" if what == "run directory" else "storage.checkpoints"
    way_out = f"point {key} to a directory that all hosts mount, and the user of the executors may write to"
    if written is None:
        way_out = f"give executors the store's credentials and a way to it, or change {key}"
    return {"level": "error", "what": what, "found": found, "way_out": way_out}


def _network(answers: Sequence[Answer]) -> Finding:
    hosts = sorted({answer.address for answer in answers})
    unreached = [
        f"rank {answer.rank} on {answer.host} can't reach rank {other}: {why}"
        for answer in answers
        for other, why in answer.unreached.items()
    ]
    if unreached:
        more = f", and {len(unreached) - 4} more" if len(unreached) > 4 else ""
        way_out = "open all ports between executors: ranks listen at ports that the system chooses"
        if "loopback" in " ".join(unreached):
            way_out = (
                "give each host's name its address on the network in /etc/hosts, or set SPARK_LOCAL_HOSTNAME"
            )
        found = "; ".join(unreached[:4]) + more
        return {"level": "error", "what": "network", "found": found, "way_out": way_out}
    lost = [a.host for a in answers if len(hosts) > 1 and a.own_name.startswith("127.")]
    if lost:
        names = ", ".join(sorted(set(lost)))
        found = f"{names} resolve their own names to the loopback device, where gloo then listens"
        way_out = "correct /etc/hosts, or set spark.executorEnv.GLOO_SOCKET_IFNAME to the network's device"
        return {"level": "warning", "what": "network", "found": found, "way_out": way_out}
    found = f"{len(answers)} ranks on {len(hosts)} host{'s' * (len(hosts) != 1)} reach one another"
    return {"level": "ok", "what": "network", "found": found, "way_out": ""}


def _gpus(answers: Sequence[Answer]) -> Finding:
    without = [f"rank {answer.rank} on {answer.host}" for answer in answers if not answer.num_gpus]
    if without:
        found = f"torch sees no GPU for {', '.join(without)}"
        way_out = "install the CUDA build of torch and the driver there, or set train.gpus_per_rank=0"
        return {"level": "error", "what": "GPUs", "found": found, "way_out": way_out}
    return {"level": "ok", "what": "GPUs", "found": f"{len(answers)} ranks see theirs", "way_out": ""}


def _ask(what: str, question: Callable[[], str]) -> Finding:
    try:
        return {"level": "ok", "what": what, "found": question(), "way_out": ""}
    except SparktrainError as error:
        return _error(what, error)


def _error(what: str, error: SparktrainError) -> Finding:
    """Our errors say what is wrong and the way out in one text; the first sentence is what was found."""
    found, _, way_out = str(error).partition(". ")
    return {"level": "error", "what": what, "found": found, "way_out": way_out}


def _tracking(config: Config) -> str:
    uri = resolve_tracking_uri(config.tracking, config.storage.root)
    check_tracking(uri)
    return without_secrets(uri)


def _pipeline(config: Config) -> str:
    from sparktrain.stages import create_task, load

    features = load(config, "data").FEATURES
    return f"{config.pipeline}: {len(features)} features, {type(create_task(config)).__name__}"
