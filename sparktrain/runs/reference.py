"""The reference: what plain logistic regression reaches on the very same rows."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped,unused-ignore]

if TYPE_CHECKING:
    from sparktrain.dataset import Dataset

_log = logging.getLogger(__name__)

_MAX_ROWS = 500_000
_MAX_STEPS = 100


def logistic_regression_reference(dataset: Dataset, max_rows: int = _MAX_ROWS) -> dict[str, float]:
    """Fit on the train split, measure on the test split.

    Numeric columns are taken as they are, categorical ones as a column for each code, null and unknown too.

    Args:
        max_rows: of the train split; more are thinned out evenly, so that the reference stays cheap.

    Returns:
        "auroc", "average_precision", "log_loss" (fitted and measured with the rows' weights, as the model's
        loss is), or nothing when a split holds one class only, or no feature is one number or code a row.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

    if not (dataset.features.numeric or dataset.features.categorical):
        _log.warning("no reference: no feature is one number or code a row")
        return {}
    train, train_target, train_weight = _design(dataset, "train", max_rows)
    test, target, weight = _design(dataset, "test", None)
    if len(np.unique(train_target)) < 2 or len(np.unique(target)) < 2:
        _log.warning("no reference: the train or the test split holds one class only")
        return {}
    model = LogisticRegression(solver="lbfgs", C=1.0, max_iter=_MAX_STEPS, tol=1e-4)
    with warnings.catch_warnings():
        # A reference need not be at the optimum to the last digit; the loss is flat where lbfgs stops.
        warnings.filterwarnings("ignore", message="(?s).*failed to converge.*")
        model.fit(train, train_target, sample_weight=train_weight)
    probability = model.predict_proba(test)[:, 1]
    return {
        "auroc": float(roc_auc_score(target, probability)),
        "average_precision": float(average_precision_score(target, probability)),
        "log_loss": float(log_loss(target, probability, sample_weight=weight)),
    }


def _design(
    dataset: Dataset, split: str, max_rows: int | None
) -> tuple[sparse.csr_matrix, NDArray[Any], NDArray[Any] | None]:
    """Return the matrix [rows, numeric + all codes], the target [rows] and the weight [rows], if any."""
    features = dataset.features
    used = [*features.numeric, *features.categorical]
    columns = [output.name for output in used] + [features.target.name]
    columns += [features.weight.name] if features.weight else []
    table = dataset.to_arrow(split, columns=columns)
    if max_rows is not None and table.num_rows > max_rows:
        table = table.take(np.linspace(0, table.num_rows - 1, max_rows).astype(np.int64))
    blocks = [sparse.csr_matrix(_numpy(table, output.name)[:, None]) for output in features.numeric]
    blocks += [_one_hot(_numpy(table, o.name), o.num_codes or 0) for o in features.categorical]
    weight = _numpy(table, features.weight.name) if features.weight else None
    return sparse.hstack(blocks, format="csr"), _numpy(table, features.target.name), weight


def _one_hot(codes: NDArray[np.int32], num_codes: int) -> sparse.csr_matrix:
    rows = len(codes)
    return sparse.csr_matrix(
        (np.ones(rows, np.float32), codes, np.arange(rows + 1, dtype=np.int32)), shape=(rows, num_codes)
    )


def _numpy(table: pa.Table, name: str) -> NDArray[Any]:
    values: NDArray[Any] = table.column(name).to_numpy()
    return values
