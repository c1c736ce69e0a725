"""The Databricks bundle and the Kubernetes manifests, held against the schemas of those who take them."""

from __future__ import annotations

import copy
import glob
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from databricks.bundles.experiments import MlflowExperiment
from databricks.bundles.jobs import ClusterSpec, Job

from sparktrain.config import Config, load_config

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "databricks.yml"
KUBERNETES = sorted((ROOT / "conf" / "kubernetes").glob("*.yaml"))

# The package knows what a job is made of, and not the file around it; these are that file's own keys.
BUNDLE_KEYS = {
    "": {"bundle", "include", "artifacts", "sync", "variables", "targets"},
    "artifact": {"type", "path", "build"},
    "variable": {"description", "type", "default"},
    "target": {"mode", "default", "workspace", "variables"},
}


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bundle() -> dict[str, Any]:
    return read(BUNDLE)


@pytest.fixture(scope="module")
def included(bundle: dict[str, Any]) -> Path:
    [pattern] = bundle["include"]
    [file] = glob.glob(str(ROOT / pattern))
    return Path(file)


@pytest.fixture(scope="module")
def job(included: Path) -> dict[str, Any]:
    return read(included)["resources"]["jobs"]["flight_delays"]


def test_the_bundle_s_job_and_experiment_are_as_databricks_defines_them(
    included: Path, job: dict[str, Any]
) -> None:
    assert [task.task_key for task in Job.from_dict(copy.deepcopy(job)).tasks] == [
        "prepare",
        "train",
        "score",
    ]
    resources = read(included)["resources"]
    assert resources.keys() == {"experiments", "jobs"}
    for experiment in resources["experiments"].values():
        assert MlflowExperiment.from_dict(experiment).name


@pytest.mark.parametrize("place", ["job", "task", "python", "cluster"])
def test_a_wrong_key_in_the_job_would_be_found(
    job: dict[str, Any], bundle: dict[str, Any], place: str
) -> None:
    wrong = copy.deepcopy(job)
    wrong["job_clusters"][0]["new_cluster"] = copy.deepcopy(bundle["variables"]["cpu_cluster"]["default"])
    Job.from_dict(copy.deepcopy(wrong))
    task = wrong["tasks"][0]
    cluster = wrong["job_clusters"][0]["new_cluster"]
    {"job": wrong, "task": task, "python": task["spark_python_task"], "cluster": cluster}[place][
        "nodetype"
    ] = "x"
    with pytest.raises(ValueError, match="nodetype"):
        Job.from_dict(wrong)


def test_the_bundle_s_own_keys_are_known(bundle: dict[str, Any]) -> None:
    assert bundle.keys() == BUNDLE_KEYS[""]
    for kind in ("artifact", "variable", "target"):
        for name, value in bundle[f"{kind}s"].items():
            assert value.keys() <= BUNDLE_KEYS[kind], name


def test_every_variable_is_declared_and_has_a_value_in_every_target(
    bundle: dict[str, Any], included: Path
) -> None:
    used = set(re.findall(r"\$\{var\.(\w+)\}", included.read_text() + BUNDLE.read_text()))
    assert used == bundle["variables"].keys()
    without = {name for name, variable in bundle["variables"].items() if "default" not in variable}
    table = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "databricks.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", "".join(table))) == bundle["variables"].keys()
    for target in bundle["targets"].values():
        assert target["variables"].keys() == without
    assert {target["mode"] for target in bundle["targets"].values()} == {"development", "production"}


def test_the_clusters_have_a_fixed_size_and_the_properties_of_the_property_file(
    bundle: dict[str, Any],
) -> None:
    text = (ROOT / "conf" / "spark" / "databricks.conf").read_text()
    wanted = dict(re.findall(r"^(spark\.\S+) +(\S+)$", text, re.MULTILINE))
    for_gpus = dict(re.findall(r"^# (spark\.\S+) +(\S+)$", text, re.MULTILINE))
    for name, more in {"cpu_cluster": {}, "gpu_cluster": for_gpus}.items():
        given = bundle["variables"][name]["default"]
        cluster = ClusterSpec.from_dict(copy.deepcopy(given))
        assert cluster.num_workers == 2 and cluster.autoscale is None
        assert cluster.spark_conf == wanted | more
        assert ("gpu-ml" in given["spark_version"]) == (name == "gpu_cluster")


def test_every_file_that_the_bundle_names_exists(
    bundle: dict[str, Any], included: Path, job: dict[str, Any]
) -> None:
    artifact = bundle["artifacts"]["sparktrain"]
    assert (ROOT / artifact["path"] / "pyproject.toml").is_file()
    assert "--wheel-dir dist" in artifact["build"]
    for task in job["tasks"]:
        file = included.parent / task["spark_python_task"]["python_file"]
        assert file.resolve().parent == ROOT / "jobs" and file.is_file()
        assert file.stem == task["task_key"]
        [wheel] = [library["whl"] for library in task["libraries"] if "whl" in library]
        assert (included.parent / wheel).resolve() == ROOT / "dist" / "*.whl"


def test_each_task_s_parameters_are_a_valid_configuration(
    bundle: dict[str, Any], job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")  # whose session has more slots than the file's
    values = {name: variable.get("default") for name, variable in bundle["variables"].items()}
    values |= bundle["targets"]["dev"]["variables"]
    configs: dict[str, Config] = {}
    for task in job["tasks"]:
        texts = [
            re.sub(r"\$\{var\.(\w+)\}", lambda found: str(values[found[1]]), p) for p in parameters(task)
        ]
        texts = [text.replace("${workspace.file_path}", str(ROOT)) for text in texts]
        texts = [text.replace("${resources.experiments.flight_delays.name}", "/Shared/x") for text in texts]
        assert texts[0] == "--config" and not [text for text in texts if "$" in text]
        configs[task["task_key"]] = load_config(texts[1], texts[2:])
    assert {str(config.storage.root) for config in configs.values()} == {values["storage_root"]}
    assert configs["train"].resume and configs["train"].train.ranks == 4
    assert configs["train"].model_uri == configs["score"].model_uri == f"models:/{values['model']}@champion"


def parameters(task: dict[str, Any]) -> list[str]:
    return list(task["spark_python_task"]["parameters"])


def manifests(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("version", ["1.31.0", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.stem)
def test_the_manifests_are_as_kubernetes_defines_them(file: Path, version: str) -> None:
    for manifest in manifests(file):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("place", ["metadata", "spec"])
@pytest.mark.parametrize("file", KUBERNETES, ids=lambda file: file.stem)
def test_a_wrong_key_in_a_manifest_would_be_found(file: Path, place: str) -> None:
    for manifest in manifests(file):
        if place in manifest:
            manifest[place]["nmespace"] = "training"
            with pytest.raises(kubernetes_validate.ValidationError, match="nmespace"):
                kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_manifests_fit_one_another_and_the_property_file() -> None:
    found = {(m["kind"], m["metadata"]["name"]): m for file in KUBERNETES for m in manifests(file)}
    text = (ROOT / "conf" / "spark" / "kubernetes.conf").read_text()
    properties = dict(re.findall(r"^(spark\.\S+) +(\S+)$", text, re.MULTILINE))
    namespace = properties["spark.kubernetes.namespace"]
    assert {m["metadata"].get("namespace", namespace) for m in found.values()} == {namespace}
    pod = found["Job", "flight-delays"]["spec"]["template"]["spec"]
    [driver] = pod["containers"]
    account = properties["spark.kubernetes.authenticate.driver.serviceAccountName"]
    assert pod["serviceAccountName"] == account and ("ServiceAccount", account) in found
    assert found["RoleBinding", "spark-driver"]["subjects"][0]["name"] == account
    assert driver["image"] == properties["spark.kubernetes.container.image"]
    volume = "spark.kubernetes.executor.volumes.persistentVolumeClaim.data"
    assert (
        pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == properties[f"{volume}.options.claimName"]
    )
    assert ("PersistentVolumeClaim", properties[f"{volume}.options.claimName"]) in found
    assert driver["volumeMounts"][0]["mountPath"] == properties[f"{volume}.mount.path"]
    service = found["Service", "flight-delays"]
    ports = {port["port"] for port in service["spec"]["ports"]}
    assert ports == {port["containerPort"] for port in driver["ports"]}
    args = driver["args"]
    assert f"spark.driver.host=flight-delays.{namespace}.svc" in args
    assert {int(m[1]) for a in args if (m := re.fullmatch(r"spark\.driver\..*port=(\d+)", a, re.I))} == ports


def test_the_job_s_command_is_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_GATEWAY_PORT", "1")  # as spark-submit sets it
    [manifest] = [m for file in KUBERNETES for m in manifests(file) if m["kind"] == "Job"]
    args = manifest["spec"]["template"]["spec"]["containers"][0]["args"]
    start = args.index("jobs/run.py")
    assert (ROOT / args[start]).is_file() and args[start + 1] == "--config"
    assert (ROOT / args[args.index("--properties-file") + 1]).is_file()
    overrides = [arg for arg in args[start + 3 :] if arg != "--json"]
    assert load_config(ROOT / args[start + 2], overrides).resume
    refused = manifest["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert json.dumps(refused) == "[2, 3, 4]", "configuration, data, training: as sparktrain.errors has them"
