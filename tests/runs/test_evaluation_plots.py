"""Which figures predictions of which shape become, and what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, roc_auc_score

from sparktrain.features import FittedTarget
from sparktrain.gang.rank import write_predictions
from sparktrain.runs.class_plots import confusion_counts, confusion_figure, one_vs_rest_figure
from sparktrain.runs.evaluation_plots import evaluation_figures
from sparktrain.runs.evaluation_table import evaluation_rows
from sparktrain.runs.number_plots import predicted_observed_figure, residuals_figure

RANDOM = np.random.default_rng(1)
ROWS = 300
BINARY = FittedTarget(name="late", column="late", kind="binary", input_type="boolean")
DIGIT = FittedTarget(
    name="digit", column="digit", kind="multiclass", input_type="string", classes=("_none", "$1 $2", "c")
)
MINUTES = FittedTarget(name="minutes", column="minutes", kind="regression", input_type="double")
CLASSES = RANDOM.integers(0, 3, ROWS)
SHARES = RANDOM.dirichlet([1, 1, 1], ROWS).astype(np.float32)
NUMBERS = RANDOM.normal(size=ROWS).astype(np.float32)
PROBABILITY = RANDOM.random(ROWS).astype(np.float32)
LATE = (RANDOM.random(ROWS) < PROBABILITY).astype(np.float32)


def written(folder: Path, predicted: Any, target: Any, name: str = "prediction") -> list[Path]:
    """Files of two ranks, as ranks write them."""

    def part(values: Any, which: slice) -> Any:
        return {k: v[which] for k, v in values.items()} if isinstance(values, dict) else values[which]

    files = []
    for rank, which in enumerate((slice(0, 100), slice(100, ROWS))):
        files.append(folder / f"test-rank-{rank:03d}.parquet")
        ids = np.arange(ROWS)[which]
        columns = {"row_id": ids, name: part(predicted, which), "target": part(target, which)}
        write_predictions(columns, files[-1])
    return files


def drawn(figures: dict[str, Figure], folder: Path) -> list[str]:
    for number, figure in enumerate(figures.values()):
        figure.savefig(folder / f"{number}.png")
    return sorted(figures)


@pytest.mark.parametrize(
    ("target", "predicted", "observed", "expected"),
    [
        (BINARY, PROBABILITY, LATE, ["calibration", "confusion", "precision_recall", "roc"]),
        (BINARY, PROBABILITY * 9 - 4, LATE, ["precision_recall", "roc"]),  # logits
        (BINARY, SHARES[:, :2], LATE, []),
        (BINARY, PROBABILITY[:, None], LATE, ["calibration", "confusion", "precision_recall", "roc"]),
        (DIGIT, SHARES, CLASSES, ["calibration", "confusion", "roc"]),
        (DIGIT, SHARES * 9 - 4, CLASSES, ["confusion", "roc"]),
        (DIGIT, SHARES[:, :2], CLASSES, []),
        (DIGIT, NUMBERS, CLASSES, []),
        (MINUTES, NUMBERS, NUMBERS, ["predicted_observed", "residuals"]),
        (MINUTES, SHARES, NUMBERS, []),
    ],
)
def test_the_kind_of_a_target_and_the_shape_of_its_prediction_decide(
    tmp_path: Path, target: FittedTarget, predicted: Any, observed: Any, expected: list[str]
) -> None:
    figures = evaluation_figures(written(tmp_path, predicted, observed), [target])
    assert drawn(figures, tmp_path) == expected


def test_each_of_several_targets_is_drawn_by_its_kind(tmp_path: Path) -> None:
    predicted = {"late": PROBABILITY, "digit": SHARES, "minutes": NUMBERS, "other": NUMBERS}
    files = written(tmp_path, predicted, {"late": LATE, "digit": CLASSES, "minutes": NUMBERS})
    none = FittedTarget(name="unpredicted", column="x", kind="regression", input_type="double")
    odd = MINUTES.model_copy(update={"name": "other"})  # predicted, and not observed
    assert drawn(evaluation_figures(files, [BINARY, DIGIT, MINUTES, none, odd]), tmp_path) == [
        "digit/calibration",
        "digit/confusion",
        "digit/roc",
        "late/calibration",
        "late/confusion",
        "late/precision_recall",
        "late/roc",
        "minutes/predicted_observed",
        "minutes/residuals",
    ]


def test_no_targets_no_files_no_rows_and_no_numbers_draw_nothing_or_something(tmp_path: Path) -> None:
    files = written(tmp_path, PROBABILITY, LATE)
    assert evaluation_figures([], [BINARY]) == {} == evaluation_figures(files, [])
    nothing = written(tmp_path, np.full(ROWS, np.nan, np.float32), LATE)
    assert len(drawn(evaluation_figures(nothing, [BINARY]), tmp_path)) == 4
    text = pa.table({"row_id": [1], "prediction": ["a"], "target": [1.0]})
    pq.write_table(text, files[0])
    assert evaluation_figures(files[:1], [BINARY]) == {}
    nan = np.full((ROWS, 3), np.nan, np.float32)
    assert len(drawn(evaluation_figures(written(tmp_path, nan, CLASSES), [DIGIT]), tmp_path)) == 3
    for draw in (residuals_figure, predicted_observed_figure):
        for values in ([], [1.0], [np.nan, 2.0], [3.0] * 500):
            draw(values, values).savefig(tmp_path / "figure.png")


def test_a_figure_that_fails_leaves_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unheard_of = CLASSES.copy()
    unheard_of[0] = 99  # no class has this number
    figures = evaluation_figures(written(tmp_path, SHARES, unheard_of), [DIGIT])
    assert sorted(figures) == ["calibration"]
    assert "no plot confusion: ValueError" in caplog.text


def test_the_confusion_is_that_of_scikit_learn() -> None:
    taken_for = SHARES.argmax(axis=1)
    np.testing.assert_array_equal(
        confusion_counts(CLASSES, taken_for, 3), confusion_matrix(CLASSES, taken_for)
    )
    axes = confusion_figure(CLASSES, taken_for, DIGIT.classes).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["_none", r"\$1 \$2", "c"]
    assert axes.texts[0].get_text() == f"{np.count_nonzero((CLASSES == 0) & (taken_for == 0)):,}"


def test_each_class_has_its_area_in_the_legend_and_of_many_classes_the_most_frequent_have() -> None:
    legend = one_vs_rest_figure(CLASSES, SHARES, DIGIT.classes).axes[0].get_legend()
    assert legend is not None
    areas = [roc_auc_score(number == CLASSES, SHARES[:, number]) for number in range(3)]
    names = [" _none", r" \$1 \$2", " c"]
    wanted = [f"{name}, AUC {area:.4f}" for name, area in zip(names, areas, strict=True)]
    assert [text.get_text() for text in legend.get_texts()] == [*wanted, "chance"]
    many = np.arange(40).repeat(2)
    figure = one_vs_rest_figure(many, RANDOM.random((80, 50)), [str(number) for number in range(50)])
    assert figure.axes[0].get_legend_handles_labels()[1][-1] == "chance; 30 rarer classes are not shown"
    assert len(figure.axes[0].lines) == 11


def test_the_table_has_a_row_for_each_metric_and_a_column_for_what_there_is() -> None:
    metrics = {
        "validation/loss": 0.5,
        "validation/auroc": float("nan"),
        "test/loss": 0.6,
        "reference/auroc": 0.7,
        "train/loss": 9.0,
    }
    assert evaluation_rows(metrics) == [
        {"metric": "loss", "validation": 0.5, "test": 0.6, "reference_test": None},
        {"metric": "auroc", "validation": None, "test": None, "reference_test": 0.7},
    ]
    assert evaluation_rows({"validation/r2": 1.0}) == [{"metric": "r2", "validation": 1.0}]
    assert evaluation_rows({}) == []
