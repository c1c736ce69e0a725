from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from mlflow.artifacts import download_artifacts
from safetensors.torch import load_file, save_file

from sparktrain.errors import ModelUnusable, SchemaMismatch
from sparktrain.gang.pickling import pickle_call
from sparktrain.runs.registry import _same_python_path, log_model
from sparktrain.scoring.model import ServedModel, pipeline_module
from tests.fixtures.tiny_model import FEATURES, PACKAGE, RAW, run_elsewhere, write_tiny_model
from tests.scoring.conftest import Registered


@pytest.fixture(scope="module")
def files(registered: Registered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as it was logged, brought from the registry."""
    folder = tmp_path_factory.mktemp("files")
    location = registered.tracker.client.get_model_version_download_uri("tiny", "1")
    return Path(download_artifacts(artifact_uri=location, dst_path=str(folder)))


@pytest.fixture(scope="module")
def served(files: Path) -> ServedModel:
    return ServedModel.load(files / "artifacts", files / "code")


@pytest.fixture(scope="module")
def pyfunc(files: Path) -> mlflow.pyfunc.PyFuncModel:
    before = list(sys.path)
    model = mlflow.pyfunc.load_model(str(files))
    sys.path[:] = before
    return model


def test_raw_rows_with_nulls_nan_and_unknown_values_are_scored(
    served: ServedModel, registered: Registered
) -> None:
    scored = served.score_arrow(RAW)
    assert scored.schema.names == ["prediction", "probability", "score_error"]
    assert scored["score_error"].null_count == scored.num_rows == RAW.num_rows
    scores = scored["probability"].to_numpy()
    assert scored["prediction"].to_pylist() == [score >= 0.5 for score in scores]
    np.testing.assert_allclose(scores, registered.model.expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("batch_rows", [1, 2, 4, 5, 1000])
def test_the_size_of_a_batch_does_not_change_the_score(
    served: ServedModel, registered: Registered, batch_rows: int
) -> None:
    scores = served.score_arrow(RAW, batch_rows)["probability"].to_numpy()
    np.testing.assert_allclose(scores, registered.model.expected, rtol=0, atol=1e-7)


def test_record_batches_chunks_and_no_rows_are_fine(served: ServedModel) -> None:
    once = served.score_arrow(RAW)
    assert served.score_arrow(RAW.to_batches()[0]).equals(once)
    chunked = pa.concat_tables([RAW.slice(0, 2), RAW.slice(2)])
    assert served.score_arrow(chunked).equals(once)
    empty = served.score_arrow(RAW.slice(0, 0))
    assert empty.num_rows == 0 and empty.schema == once.schema


def test_missing_columns_are_all_named(served: ServedModel, pyfunc: mlflow.pyfunc.PyFuncModel) -> None:
    with pytest.raises(SchemaMismatch, match=r"`month`(.|\n)*`carrier`"):
        served.score_arrow(RAW.drop_columns(["month", "carrier"]))
    with pytest.raises(SchemaMismatch, match=r"`month`(.|\n)*`carrier`"):
        pyfunc.predict(RAW.drop_columns(["month", "carrier"]).to_pandas())
    with pytest.raises(SchemaMismatch, match=r"`distance`(.|\n)*`weekend`"):
        pyfunc.predict(pd.DataFrame({"other": [1]}))


def test_pandas_goes_in_and_a_frame_with_the_same_index_comes_out(
    pyfunc: mlflow.pyfunc.PyFuncModel, registered: Registered
) -> None:
    frame = RAW.to_pandas().set_index(pd.Index([10, 20, 30, 40, 50, 60]))
    scores = pyfunc.predict(frame)
    assert list(scores.columns) == ["prediction", "probability", "score_error"]
    assert scores["prediction"].dtype == bool and scores["score_error"].isna().all()
    assert list(scores.index) == [10, 20, 30, 40, 50, 60]
    assert scores["probability"].dtype == np.float64
    np.testing.assert_allclose(scores["probability"], registered.model.expected, atol=1e-7)


def test_integers_are_accepted_with_and_without_missing_values(
    pyfunc: mlflow.pyfunc.PyFuncModel, served: ServedModel
) -> None:
    complete = RAW.filter(pa.compute.is_valid(RAW["seats"])).to_pandas()
    expected = served.score_arrow(pa.Table.from_pandas(complete))["probability"].to_numpy()
    for dtype in ("int64", "int32", "float64", "Int64"):
        frame = complete.astype({"seats": dtype, "month": dtype})
        np.testing.assert_array_equal(pyfunc.predict(frame)["probability"], expected)
    missing = RAW.set_column(RAW.schema.get_field_index("month"), "month", pa.nulls(6, pa.int64()))
    for frame in (missing.to_pandas(), missing.to_pandas().astype({"seats": "Int64", "month": "Int64"})):
        expected = served.score_arrow(missing)["probability"].to_numpy()
        np.testing.assert_array_equal(pyfunc.predict(frame)["probability"], expected)


def test_a_wrong_type_is_refused_where_columns_have_types_and_told_by_row_where_not(
    served: ServedModel, pyfunc: mlflow.pyfunc.PyFuncModel
) -> None:
    far = RAW.set_column(RAW.schema.get_field_index("distance"), "distance", pa.array(["far"] * 6))
    with pytest.raises(SchemaMismatch, match="`distance` is string, expected double"):
        served.score_arrow(far)
    may = RAW.set_column(RAW.schema.get_field_index("month"), "month", pa.array(["May"] * 6))
    for wrong, reason in (
        (far, "column `distance`: 'far' is no number"),
        (may, "column `month`: 'May' is no whole number of 64 bits"),
    ):
        scores = pyfunc.predict(wrong.to_pandas())
        assert scores["prediction"].isna().all() and scores["probability"].isna().all()
        assert list(scores["score_error"]) == [reason] * 6


def test_the_signature_is_that_of_the_raw_columns(pyfunc: mlflow.pyfunc.PyFuncModel) -> None:
    inputs = {spec["name"]: spec for spec in pyfunc.metadata.signature.inputs.to_dict()}
    assert {name: spec["type"] for name, spec in inputs.items()} == {
        "distance": "any",  # cast by MLflow, one bad number would fail a whole request
        "seats": "any",  # MLflow has no type for integers that may be missing
        "month": "any",
        "carrier": "string",
        "weekend": "any",  # MLflow casts a missing one to False
    }
    assert not any(spec["required"] for spec in inputs.values())
    assert pyfunc.metadata.metadata["input_types"] == dict(FEATURES.input_types)
    outputs = pyfunc.metadata.signature.outputs.to_dict()
    assert [(output["name"], output["type"]) for output in outputs] == [
        ("prediction", "boolean"),
        ("probability", "double"),
        ("score_error", "string"),
    ]


def test_the_input_example_can_be_scored(pyfunc: mlflow.pyfunc.PyFuncModel) -> None:
    example = pyfunc.input_example
    assert list(example.columns) == list(FEATURES.input_types)
    assert len(pyfunc.predict(example)) == len(example) == 5


def test_the_files_are_clean_and_hold_no_pickle(files: Path) -> None:
    paths = [path.relative_to(files) for path in files.rglob("*") if path.is_file()]
    names = {path.as_posix() for path in paths}
    assert not [p for p in paths if "__pycache__" in p.parts or p.suffix in (".pyc", ".pkl", ".pt")]
    assert {"artifacts/features.json", "artifacts/model.safetensors", "artifacts/task.json"} <= names
    assert "code/sparktrain/scoring/model.py" in names
    # what model.py imports, and no more: data.py would ask for pyspark
    assert {name for name in names if name.startswith("code/pipelines/")} == {
        "code/pipelines/__init__.py",
        "code/pipelines/flight_delays/__init__.py",
        "code/pipelines/flight_delays/layers.py",
        "code/pipelines/flight_delays/model.py",
        "code/pipelines/shared/__init__.py",
        "code/pipelines/shared/scale.py",
    }
    task = json.loads((files / "artifacts" / "task.json").read_text())
    assert task == {"pipeline": PACKAGE, "arguments": {"width": 4}}


def test_requirements_are_pinned_and_need_no_special_index(files: Path) -> None:
    lines = (files / "requirements.txt").read_text().split()
    assert all("==" in line and "+" not in line for line in lines)
    assert {line.partition("==")[0] for line in lines} >= {"mlflow", "torch", "pyarrow", "safetensors"}
    assert not any(line.startswith("pyspark") for line in lines)
    assert yaml.safe_load((files / "MLmodel").read_text())["flavors"]["python_function"]["code"] == "code"


ELSEWHERE = """
    import importlib.util, json, sys
    from pathlib import Path

    # an editable installation adds the repository by a .pth file
    sys.path = [entry for entry in sys.path if not (Path(entry) / "pipelines").is_dir()]
    assert importlib.util.find_spec("pipelines") is None
    # a server without Spark; MLflow itself looks whether there is one, and takes this for no
    sys.modules["pyspark"] = None
    import mlflow, pandas

    model = mlflow.pyfunc.load_model(sys.argv[1])
    scores = model.predict(pandas.read_json(sys.argv[2], orient="split"))
    foreign = [n for n, m in sys.modules.items() if m and n.split(".")[0] in ("pyspark", "pipelines")]
    own = sys.modules["sparktrain"].__file__
    print(json.dumps({"scores": scores["probability"].tolist(), "sparktrain": own, "foreign": foreign}))
"""


def test_it_loads_in_a_process_that_has_neither_sparktrain_nor_the_pipeline(
    files: Path, registered: Registered, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.json"
    RAW.slice(0, 2).to_pandas().to_json(rows, orient="split")
    found = run_elsewhere(ELSEWHERE, tmp_path, str(files), str(rows))
    assert found["sparktrain"].startswith(str(files / "code"))
    assert found["foreign"] == []  # the task's module is kept by the model, not by sys.modules
    np.testing.assert_allclose(found["scores"][0], registered.model.expected[0], atol=1e-7)


def test_two_models_of_one_pipeline_keep_their_own_code(tmp_path: Path) -> None:
    for scale in (0.0, 1.0):
        model = write_tiny_model(tmp_path / str(scale), scale=scale)
        artifacts = tmp_path / str(scale) / "artifacts"
        artifacts.mkdir()
        (artifacts / "features.json").write_text(FEATURES.to_json())
        (artifacts / "task.json").write_text(json.dumps({"pipeline": PACKAGE, "arguments": {"width": 4}}))
        (artifacts / "model.safetensors").write_bytes(model.weights.read_bytes())
    flat, steep = (
        ServedModel.load(tmp_path / s / "artifacts", tmp_path / s / "code") for s in ("0.0", "1.0")
    )
    assert flat.score_arrow(RAW)["probability"].to_pylist() == [0.5] * 6
    assert len(set(steep.score_arrow(RAW)["probability"].to_pylist())) == 6


def test_loading_leaves_this_process_its_own_pipelines(files: Path) -> None:
    import pipelines

    before = (list(sys.path), dict(sys.modules))
    ServedModel.load(files / "artifacts", files / "code")
    assert sys.path == before[0]
    assert sys.modules["pipelines"] is pipelines
    assert {name for name in sys.modules if name.startswith("pipelines.")} == {
        name for name in before[1] if name.startswith("pipelines.")
    }


def test_loading_by_mlflow_lets_this_process_own_code_come_first(files: Path) -> None:
    before = list(sys.path)
    try:
        mlflow.pyfunc.load_model(str(files))
        assert sys.path[: len(before)] == before
        assert [Path(entry).resolve() for entry in sys.path[len(before) :]] == [(files / "code").resolve()]
    finally:
        sys.path[:] = before


def test_other_threads_wait_for_their_own_pipelines(files: Path) -> None:
    import pipelines.flight_delays.model as own

    folder = str(files / "code")
    inside: list[bool] = []

    def tried() -> None:
        with _same_python_path():  # as a thread does that registers a model
            inside.append(folder in sys.path)

    pickled: list[bytes] = []
    threads = [
        threading.Thread(target=tried),
        threading.Thread(target=lambda: pickled.append(pickle_call(own.Task, []))),
    ]
    by_name = pickle_call(own.Task, [])
    with pipeline_module(PACKAGE, files / "code") as model:
        assert model is not own and "pipelines.flight_delays.layers" in sys.modules
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert not inside and not pickled
    for thread in threads:
        thread.join(20)
    assert inside == [False] and pickled == [by_name]


def test_code_that_changes_the_python_path_leaves_the_pipelines_of_this_process(files: Path) -> None:
    import pipelines

    before = list(sys.path)
    with pipeline_module(PACKAGE, files / "code"):
        sys.path.remove(str(files / "code"))
    assert sys.path == before and sys.modules["pipelines"] is pipelines


def test_weights_of_another_shape_are_refused_in_words(
    files: Path, registered: Registered, tmp_path: Path
) -> None:
    for name in ("features.json", "task.json"):
        (tmp_path / name).write_bytes((files / "artifacts" / name).read_bytes())
    weights = load_file(registered.model.weights)
    save_file(
        {key: value for key, value in weights.items() if key != "out.bias"}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelUnusable, match=r"weights don't fit the module(.|\n)*out\.bias"):
        ServedModel.load(tmp_path, files / "code")
    (tmp_path / "task.json").unlink()
    with pytest.raises(ModelUnusable, match=r"it has no task\.json"):
        ServedModel.load(tmp_path, files / "code")


def test_logging_leaves_process_wide_settings_alone_and_moves_the_alias(
    registered: Registered, tmp_path: Path
) -> None:
    client = registered.tracker.client
    before = (mlflow.get_tracking_uri(), list(sys.path), mlflow.active_run())
    model = write_tiny_model(tmp_path, seed=1)
    uris = [
        log_model(registered.tracker, **model.arguments(), registered_name="moving", alias="champion")
        for _ in range(2)
    ]
    assert uris == ["models:/moving/1", "models:/moving/2"]
    assert client.get_model_version_by_alias("moving", "champion").version == 2
    assert (mlflow.get_tracking_uri(), list(sys.path), mlflow.active_run()) == before
    version = client.get_model_version("moving", "1")
    assert version.run_id == registered.tracker.run_id
    outputs = client.get_run(registered.tracker.run_id).outputs.model_outputs
    assert client.get_logged_model(outputs[0].model_id).status == "READY"


def test_a_model_that_can_not_score_is_not_registered(registered: Registered, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    layers = model.folder / "layers.py"
    layers.write_text(layers.read_text().replace(".squeeze(1)", ".sum().reshape(1)"))
    with pytest.raises(ModelUnusable, match=r"shape \(1,\) for 5 rows"):
        log_model(registered.tracker, **model.arguments(), registered_name="broken", alias="champion")
    client = registered.tracker.client
    assert [m for m in client.search_registered_models() if m.name == "broken"] == []
