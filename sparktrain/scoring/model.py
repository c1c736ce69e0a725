"""ServedModel: fitted features, weights and the pipeline's own code as one thing that takes raw rows.

Needs torch, but neither Spark nor MLflow, so that a server or a Python worker starts quickly. No pickle
anywhere: the features and the task's arguments are JSON, the weights safetensors, the code files of Python.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from sparktrain.errors import ModelUnusable
from sparktrain.features import FittedFeatures, refused_rows, short_reason
from sparktrain.features.fitted_columns.column import Arrays
from sparktrain.runs.package import FEATURES_FILE, IMPORTING, TASK_FILE, WEIGHTS_FILE
from sparktrain.scoring.columns import PredictionsUnfit, ScoreColumns
from sparktrain.storage import read_json

if TYPE_CHECKING:
    from sparktrain.training.task import TrainTask

BATCH_ROWS = 4096  # what a hidden layer makes of more would not stay in a core's cache


class Piece(NamedTuple):
    """Rows that went through the model together.

    Attributes:
        places: of these rows among those given, int64 [rows].
        outputs: what the module returned, on the model's device.
        predictions: `Task.predict` of that.
    """

    places: NDArray[np.int64]
    outputs: Any
    predictions: Any


@dataclass(frozen=True)
class ServedModel:
    """A model that is ready to score; made by `load`.

    Attributes:
        features: how raw rows become what the module takes.
        module: in evaluation mode, on `device`.
        task: turns the module's outputs into predictions.
        device: where the module runs.
    """

    features: FittedFeatures
    module: nn.Module
    task: TrainTask
    device: torch.device

    @classmethod
    def load(cls, artifacts: Path, code: Path | None, device: torch.device | None = None) -> ServedModel:
        """Load from a directory of features.json, task.json and model.safetensors.

        Args:
            code: directory to import the pipeline from; None takes it from the Python path.
            device: to run the module on; None: the CPU.

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
        device = device or torch.device("cpu")
        return cls(features, module.to(device).eval().requires_grad_(False), task, device)

    @cached_property
    def columns(self) -> ScoreColumns:
        """The columns that this model gives; a Task without target is asked how many numbers it predicts.

        Raises:
            ModelUnusable: such a Task predicts no tensor of rows, or can't predict a row of zeros.
        """
        if self.features.targets:
            return ScoreColumns(self.features)
        predictions = self._predict_zeros()
        if not isinstance(predictions, torch.Tensor) or predictions.dim() < 1:
            raise ModelUnusable(
                type(self.task).__module__,
                "without a target, what predict gives becomes the column `prediction`, and it gave "
                + (
                    "a tensor without rows"
                    if isinstance(predictions, torch.Tensor)
                    else type(predictions).__name__
                ),
                "return one tensor of shape [rows] or [rows, numbers]",
            )
        return ScoreColumns(self.features, None if predictions.dim() == 1 else predictions[0].numel())

    def score_arrow(
        self,
        rows: pa.Table | pa.RecordBatch,
        batch_rows: int = BATCH_ROWS,
        errors: Mapping[int, str] | None = None,
    ) -> pa.RecordBatch:
        """Return the columns of `score_schema` for each raw row; columns that are no features are ignored.

        A row that can't be scored has nulls and says why in `score_error`.

        Args:
            batch_rows: most rows that go through the module at once.
            errors: why some rows can't be scored, by their place, where that is known already.

        Raises:
            SchemaMismatch: with every column that is missing or of a type that can't be read as the declared.
            ModelUnusable: the Task predicts something else than a score a row.
        """
        errors = dict(errors or {})
        values = self.columns.empty(rows.num_rows)
        for piece in self.outputs(rows, errors, batch_rows):
            try:
                found = self.columns.values(piece.predictions, len(piece.places))
            except PredictionsUnfit as error:
                raise ModelUnusable(type(self.task).__module__, str(error), error.way_out) from error
            for name, of_target in found.items():
                values[name][piece.places] = of_target
        return self.columns.to_arrow(values, errors)

    def outputs(
        self, rows: pa.Table | pa.RecordBatch, errors: dict[int, str], batch_rows: int = BATCH_ROWS
    ) -> Iterator[Piece]:
        """Put raw rows through the module: what it returned and what the Task made of that, as tensors.

        This is for those who want more than a score, such as logits. Each row is in one piece, or among the
        errors; pieces are in no order that counts.

        Args:
            errors: gets why a row is in no piece, by the row's place; those that are there are left out.
            batch_rows: most rows of a piece.

        Raises:
            SchemaMismatch: with every column that is missing or of a type that can't be read as the declared.
            RuntimeError: torch's own, where the GPU failed: only another process can go on.
        """
        self.features.check_schema(rows.schema)
        wanted = np.arange(rows.num_rows)
        if errors:
            wanted = np.delete(wanted, list(errors))
            rows = rows.take(pa.array(wanted))
        at_once = 2 * batch_rows  # looking values up is the cheaper the more there are
        for start in range(0, len(wanted), at_once):
            part, places = rows.slice(start, at_once), wanted[start : start + at_once]  # views
            for columns, taken in self._columns_of(part, places, errors):
                yield from self._pieces(self._to_tensors(columns), taken, errors, batch_rows)

    def _columns_of(
        self, rows: pa.Table | pa.RecordBatch, places: NDArray[np.int64], errors: dict[int, str]
    ) -> Iterator[tuple[Arrays, NDArray[np.int64]]]:
        """Transform rows together, without those that are refused; in halves where only all of them fail."""
        waiting = [(rows, places)]
        while waiting:
            rows, places = waiting.pop()
            try:
                columns = self.features.transform(rows)
            except Exception as error:  # of a tokenizer, anything
                if refused := refused_rows(self.features, rows):
                    errors.update({int(places[row]): reason for row, reason in refused.items()})
                    taken = np.delete(np.arange(len(places)), list(refused))
                    if len(taken):
                        waiting.append((rows.take(pa.array(taken)), places[taken]))
                elif len(places) > 1:
                    half = len(places) // 2
                    waiting += [(rows.slice(half), places[half:]), (rows.slice(0, half), places[:half])]
                else:
                    errors[int(places[0])] = short_reason(error)
            else:
                yield columns, places

    def _to_tensors(self, columns: Arrays) -> dict[str, Tensor]:
        return {
            name: torch.from_numpy(np.require(values, requirements="W")).to(self.device)
            for name, values in columns.items()
            if values.dtype.kind != "O"  # text that is passed through; no stream has it either
        }

    def _pieces(
        self, batch: dict[str, Tensor], places: NDArray[np.int64], errors: dict[int, str], most: int
    ) -> Iterator[Piece]:
        """Put a batch through the module, at most so many rows at once, in halves where that fails."""
        starts = range(0, len(places), most)
        waiting = [(start, min(start + most, len(places))) for start in reversed(starts)]
        while waiting:
            start, stop = waiting.pop()
            try:
                outputs, predictions = self._predict({k: tensor[start:stop] for k, tensor in batch.items()})
            except Exception as error:
                if self.device.type != "cpu" and _has_lost_device(error):
                    raise
                half = (start + stop) // 2
                if half > start:
                    waiting += [(half, stop), (start, half)]
                elif isinstance(error, torch.OutOfMemoryError):
                    raise  # not the row's fault
                else:
                    errors[int(places[start])] = f"the model failed: {short_reason(error)}"
            else:
                yield Piece(places[start:stop], outputs, predictions)

    def _predict(self, batch: dict[str, Tensor]) -> tuple[Any, Any]:
        with torch.inference_mode():
            outputs = self.module(batch)
            return outputs, self.task.predict(outputs)

    def _predict_zeros(self) -> Any:
        zeros = {
            output.name: np.zeros((1, *output.shape), output.dtype)
            for output in self.features.outputs
            if output.dtype != "string"
        }
        try:
            return self._predict(self._to_tensors(zeros))[1]
        except Exception as error:
            raise ModelUnusable(
                type(self.task).__module__,
                f"it can't predict one row of zeros, by which its columns are known: {short_reason(error)}",
                "see that the module takes such a row",
            ) from error


def _has_lost_device(error: Exception) -> bool:
    """Whether a process can use its accelerator no longer, so that nothing is said of the rows.

    Newer versions of torch have a class for it. Before, it is a RuntimeError, as what any row may raise is.
    """
    return type(error).__name__ == "AcceleratorError" or (
        isinstance(error, RuntimeError)
        and not isinstance(error, torch.OutOfMemoryError)
        and "CUDA error" in str(error)
    )


@contextmanager
def pipeline_module(package: str, code: Path | None) -> Iterator[ModuleType]:
    """Import `<package>.model` from `code`, whatever `pipelines` this process already has or finds first.

    Two versions of a model in one process each keep the code that they were logged with: the modules leave
    `sys.modules` at exit, and what was imported from them keeps them alive. Meanwhile no other thread of
    sparktrain's imports a pipeline; those that do so by themselves may get this one. A package of
    sparktrain's own is that of this sparktrain, which is at work already.
    """
    root = package.partition(".")[0]
    if code is None or root == __name__.partition(".")[0]:
        yield importlib.import_module(f"{package}.model")
        return
    with IMPORTING:
        hidden = _take_out(root)
        sys.path.insert(0, str(code))
        importlib.invalidate_caches()
        try:
            yield importlib.import_module(f"{package}.model")
        finally:
            if str(code) in sys.path:  # the code itself, or a thread, may have set another
                sys.path.remove(str(code))
            _take_out(root)
            sys.modules.update(hidden)


def _take_out(root: str) -> dict[str, Any]:
    names = [name for name in sys.modules if name == root or name.startswith(f"{root}.")]
    return {name: sys.modules.pop(name) for name in names}
