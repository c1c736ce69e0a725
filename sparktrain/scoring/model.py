"""ServedModel: fitted features, weights and the pipeline's own code as one thing that takes raw rows.

Needs torch, but neither Spark nor MLflow, so that a server or a Python worker starts quickly. No pickle
anywhere: the features and the task's arguments are JSON, the weights safetensors, the code files of Python.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from sparktrain.errors import ModelUnusable
from sparktrain.features import FittedFeatures
from sparktrain.storage import read_json

if TYPE_CHECKING:
    from sparktrain.training.task import TrainTask

FEATURES_FILE = "features.json"
TASK_FILE = "task.json"
WEIGHTS_FILE = "model.safetensors"
PROBABILITY = "probability"

_importing = threading.RLock()


@dataclass(frozen=True)
class ServedModel:
    """A model that is ready to score; made by `load`.

    Attributes:
        features: how raw rows become what the module takes.
        module: in evaluation mode, on the CPU.
        task: turns the module's outputs into probabilities.
    """

    features: FittedFeatures
    module: nn.Module
    task: TrainTask

    @classmethod
    def load(cls, artifacts: Path, code: Path | None) -> ServedModel:
        """Load from a directory of features.json, task.json and model.safetensors.

        Args:
            code: directory to import the pipeline from; None takes it from the Python path.

        Raises:
            ModelUnusable: when a file is missing or does not fit the others.
        """
        try:
            features = FittedFeatures.from_json((artifacts / FEATURES_FILE).read_bytes())
            spec = read_json(artifacts / TASK_FILE)
            weights = load_file(artifacts / WEIGHTS_FILE)
        except FileNotFoundError as error:
            raise ModelUnusable(
                str(artifacts),
                f"it has no {Path(str(error.filename or error)).name}, so sparktrain did not log it",
                "give a model that sparktrain registered; others have mlflow.pyfunc.spark_udf",
            ) from error
        with pipeline_module(spec["pipeline"], code) as pipeline:
            features.import_tokenizers()  # of the pipeline's own code, which leaves sys.modules again
            task = pipeline.Task(**spec["arguments"])
            module = task.build_model(features)
        try:
            module.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            raise ModelUnusable(
                str(artifacts),
                f"its weights don't fit the module that {spec['pipeline']}.model builds: {error}",
                "score with the code that trained it",
            ) from error
        return cls(features, module.eval().requires_grad_(False), task)

    def score_arrow(self, rows: pa.Table | pa.RecordBatch, batch_rows: int = 8192) -> NDArray[np.float64]:
        """Return the probability of each raw row, shape [rows]; columns that are no features are ignored.

        Raises:
            SchemaMismatch: with every column that is missing or can't be read as its declared type.
        """
        columns = self.features.transform(rows)
        tensors = {
            name: torch.from_numpy(np.require(values, requirements="W"))
            for name, values in columns.items()
            if values.dtype.kind != "O"  # text that is passed through; no stream has it either
        }
        scores = np.empty(rows.num_rows, np.float64)
        with torch.inference_mode():
            for start in range(0, rows.num_rows, batch_rows):
                # views: nothing is copied for a slice
                batch = {name: tensor[start : start + batch_rows] for name, tensor in tensors.items()}
                probability = self.task.predict(self.module(batch))  # [rows of the slice]
                part = scores[start : start + batch_rows]
                if tuple(probability.shape) != part.shape:  # numpy would spread one value over all rows
                    raise ModelUnusable(
                        type(self.task).__module__,
                        f"predict gave shape {tuple(probability.shape)} for {len(part)} rows",
                        "return one probability a row, shape [rows]",
                    )
                part[:] = probability.double().numpy()
        return scores


@contextmanager
def pipeline_module(package: str, code: Path | None) -> Iterator[ModuleType]:
    """Import `<package>.model` from `code`, whatever `pipelines` this process already has or finds first.

    Two versions of a model in one process each keep the code that they were logged with: the modules leave
    `sys.modules` at exit, and what was imported from them keeps them alive.
    """
    if code is None:
        yield importlib.import_module(f"{package}.model")
        return
    root = package.partition(".")[0]
    with _importing:
        hidden = _take_out(root)
        sys.path.insert(0, str(code))
        importlib.invalidate_caches()
        try:
            yield importlib.import_module(f"{package}.model")
        finally:
            sys.path.remove(str(code))
            _take_out(root)
            sys.modules.update(hidden)


def _take_out(root: str) -> dict[str, Any]:
    names = [name for name in sys.modules if name == root or name.startswith(f"{root}.")]
    return {name: sys.modules.pop(name) for name in names}
