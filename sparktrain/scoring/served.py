"""The model as MLflow serves it: MLflow stores this file and runs it to load a model, no pickle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from sparktrain.errors import SchemaMismatch
from sparktrain.runs.package import IMPORTING, WEIGHTS_FILE
from sparktrain.scoring.model import ServedModel
from sparktrain.scoring.pandas_rows import raw_columns, scores_frame
from sparktrain.scoring.spark_task import device_and_threads, session_time_zone


class RowsRefused(SchemaMismatch, MlflowException):
    """A server answers it with status 400 and these words."""

    def __init__(self, text: str) -> None:
        MlflowException.__init__(self, text, error_code=INVALID_PARAMETER_VALUE)


class PandasModel(PythonModel):
    """Takes raw rows as a pandas DataFrame, gives a DataFrame with the columns of `score_schema`."""

    def load_context(self, context: PythonModelContext) -> None:
        artifacts = Path(context.artifacts[WEIGHTS_FILE]).parent
        code = artifacts.parent / "code"
        self.model = ServedModel.load(artifacts, code, device_and_threads())
        _to_the_end_of_the_path(code)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score raw rows [rows, columns]; the result keeps their index."""
        zone = session_time_zone()  # in spark_udf, pandas' times are those of its clocks
        rows, errors = raw_columns(model_input, self.model.features.input_types, zone)
        try:
            scores = self.model.score_arrow(rows, errors=errors)
        except SchemaMismatch as error:
            raise RowsRefused(str(error)) from error
        return scores_frame(scores, model_input.index)


def _to_the_end_of_the_path(code: Path) -> None:
    """MLflow leaves a model's code in front of a process' own: what is trained here later would be that.

    It is of use still where nothing else brings sparktrain.
    """
    with IMPORTING:
        of_model = [entry for entry in sys.path if entry and Path(entry).resolve() == code.resolve()]
        sys.path[:] = [entry for entry in sys.path if entry not in of_model] + of_model


set_model(PandasModel())
