"""The model as MLflow serves it: MLflow stores this file and runs it to load a model, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from sparktrain.scoring.model import PROBABILITY, WEIGHTS_FILE, ServedModel


class PandasModel(PythonModel):
    """Takes raw rows as a pandas DataFrame, gives a DataFrame with the column `probability`."""

    def load_context(self, context: PythonModelContext) -> None:
        artifacts = Path(context.artifacts[WEIGHTS_FILE]).parent
        self.model = ServedModel.load(artifacts, artifacts.parent / "code")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score raw rows [rows, columns]; the result keeps their index."""
        names = [name for name in self.model.features.input_types if name in model_input.columns]
        rows = pa.Table.from_pandas(model_input[names], preserve_index=False)
        if not names:
            rows = pa.table({})  # score_arrow names everything that is missing
        return pd.DataFrame({PROBABILITY: self.model.score_arrow(rows)}, index=model_input.index)


set_model(PandasModel())
