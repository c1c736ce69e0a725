"""The columns of scores, by the kind of each target; and the rows that get none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparktrain.errors import ModelUnusable, SchemaMismatch
from sparktrain.features import NUMBERS, FittedFeatures, refused_rows, score_schema
from sparktrain.scoring.model import Piece, ServedModel
from tests.fixtures.rich_model import BAD, RAW, TARGETS, features, rich_model, with_bad_rows

NUMBER, TEXT = pa.float64(), pa.string()


@pytest.mark.parametrize(
    ("targets", "columns"),
    [
        (["late"], {"prediction": pa.bool_(), "probability": NUMBER}),
        (["zero_one"], {"prediction": pa.int64(), "probability": NUMBER}),
        (["share"], {"prediction": NUMBER, "probability": NUMBER}),
        (["digit"], {"prediction": pa.int64(), "probability": NUMBERS}),
        (["colour"], {"prediction": TEXT, "probability": NUMBERS}),
        (["yes"], {"prediction": pa.bool_(), "probability": NUMBERS}),
        (["minutes"], {"prediction": NUMBER}),
        (
            ["digit", "minutes", "late"],
            {
                "digit_prediction": pa.int64(),
                "digit_probability": NUMBERS,
                "minutes_prediction": NUMBER,
                "late_prediction": pa.bool_(),
                "late_probability": NUMBER,
            },
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_kind_of_target_has_its_columns(targets: Sequence[str], columns: dict[str, pa.DataType]) -> None:
    model = rich_model(*targets)
    scored = model.score_arrow(RAW)
    assert scored.schema == score_schema(model.features) == pa.schema({**columns, "score_error": TEXT})
    assert scored.num_rows == RAW.num_rows and scored["score_error"].null_count == RAW.num_rows
    for name in targets:
        prefix = f"{name}_" if len(targets) > 1 else ""
        check_target(name, scored, prefix)
    assert model.score_arrow(RAW, batch_rows=4)["score_error"].null_count == RAW.num_rows


def check_target(name: str, scored: pa.RecordBatch, prefix: str) -> None:
    """Hold the columns of a target against one another."""
    target, predicted = TARGETS[name], scored[f"{prefix}prediction"].to_pylist()
    if target.kind == "regression":
        assert np.isfinite(predicted).all() and len(set(predicted)) == len(predicted)
        return
    probability = np.array(scored[f"{prefix}probability"].to_pylist())
    if target.kind == "binary":
        assert [int(value) for value in predicted] == (probability >= 0.5).astype(int).tolist()
        return
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-6)
    classes = {"string": str, "long": int, "boolean": lambda text: text == "true"}[target.input_type]
    assert predicted == [classes(target.classes[number]) for number in probability.argmax(axis=1)]


@pytest.mark.parametrize(("numbers", "kind"), [(0, NUMBER), (1, NUMBERS), (3, NUMBERS)])
def test_without_a_target_the_prediction_is_what_the_task_predicts(numbers: int, kind: pa.DataType) -> None:
    model = rich_model(numbers=numbers)
    scored = model.score_arrow(RAW)
    assert scored.schema == pa.schema({"prediction": kind, "score_error": TEXT})
    (piece,) = model.outputs(RAW, {})
    np.testing.assert_array_equal(scored["prediction"].to_pylist(), piece.predictions.double().numpy())
    assert model.score_arrow(RAW.slice(0, 0)).schema == scored.schema


@pytest.mark.parametrize("targets", [["late"], ["digit"], ["minutes"], ["digit", "minutes"], []])
@pytest.mark.parametrize("batch_rows", [1, 5, 1000])
def test_a_bad_row_has_a_reason_and_no_score_and_the_others_keep_theirs(
    targets: Sequence[str], batch_rows: int
) -> None:
    model, (rows, reasons) = rich_model(*targets, numbers=2), with_bad_rows()
    scored = model.score_arrow(rows, batch_rows)
    for place, said in enumerate(scored["score_error"].to_pylist()):
        if place in reasons:
            assert said is not None and said.startswith(reasons[place])
            assert all(column[place].as_py() is None for column in scored.columns[:-1])
        else:
            assert said is None
    assert len(reasons) == len(BAD) == RAW.num_rows
    good, clean = scored.slice(0, RAW.num_rows), model.score_arrow(RAW)
    for name in clean.schema.names[:-1]:
        found, wanted = (np.array(batch[name].to_pylist(), np.float64) for batch in (good, clean))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_batch_of_bad_rows_only_is_an_answer_too() -> None:
    rows, reasons = with_bad_rows()
    scored = rich_model("late").score_arrow(rows.slice(RAW.num_rows))
    assert scored["score_error"].null_count == 0 and scored["probability"].null_count == len(reasons)


def test_all_that_is_wrong_with_a_row_is_told() -> None:
    row = {**RAW.to_pylist()[0], "number": None, "vector": [1.0], "text": "who?"}
    refused = refused_rows(features(), pa.Table.from_pylist([row], RAW.schema))
    assert refused == {
        0: "column `number`: 1 null; column `vector`: 1 row that has not 3 values; "
        "column `text`: LookupError: no question is answered"
    }


def test_a_value_that_its_column_can_not_hold_is_the_fault_of_its_row() -> None:
    place = RAW.schema.get_field_index("count")
    rows = RAW.set_column(place, "count", pa.array([1.0, 2.5, None, float("nan"), 1e30, 6.0]))
    place = RAW.schema.get_field_index("code")
    rows = rows.set_column(place, "code", pa.array([1.0, 2.0, 2.5, None, float("nan"), float("inf")]))
    said = rich_model("late").score_arrow(rows)["score_error"].to_pylist()
    assert [place for place, reason in enumerate(said) if reason] == [1, 2, 4, 5]
    assert said[1].startswith("column `count`: ") and "2.5" in said[1]
    assert said[2].startswith("column `code`: ") and "2.5" in said[2]


def test_a_missing_column_or_one_of_another_type_is_one_error_for_all() -> None:
    model = rich_model("late")
    wrong = RAW.drop_columns(["word", "day"]).append_column("day", pa.array([1] * RAW.num_rows))
    with pytest.raises(SchemaMismatch, match=r"missing column `word`(.|\n)*`day` is int64, expected date"):
        model.score_arrow(wrong)
    with pytest.raises(SchemaMismatch, match="missing column `word`"):
        model.score_arrow(wrong.slice(0, 0))


def test_the_outputs_of_the_module_are_there_row_by_row() -> None:
    model, (rows, reasons) = rich_model("digit"), with_bad_rows()
    errors: dict[int, str] = {1: "known before"}
    pieces = list(model.outputs(rows, errors, batch_rows=5))
    places = np.concatenate([piece.places for piece in pieces])
    failed = {place for place, reason in reasons.items() if "NaN" not in reason}
    assert errors.keys() == {1, *failed}
    assert sorted(places.tolist()) == sorted(set(range(rows.num_rows)) - errors.keys())
    logits = torch.cat([piece.outputs["digit"] for piece in pieces])
    probability = torch.cat([piece.predictions for piece in pieces])
    torch.testing.assert_close(torch.softmax(logits, dim=1), probability, equal_nan=True)
    assert all(isinstance(piece, Piece) and len(piece.places) <= 5 for piece in pieces)


class Failing(torch.nn.Module):
    """Fails for more than so many rows, as memory that is full does."""

    def __init__(self, inner: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.inner, self.most, self.calls = inner, most, 0

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.calls += 1
        if len(batch["number"]) > self.most:
            raise torch.OutOfMemoryError("too many rows at once")
        return self.inner(batch)


def test_a_batch_too_large_for_the_memory_goes_in_halves_and_one_row_too_large_is_an_error() -> None:
    model = rich_model("late")
    expected = model.score_arrow(RAW)
    failing = Failing(model.module, most=2)
    model = ServedModel(model.features, failing, model.task, model.device)
    found = model.score_arrow(RAW)
    np.testing.assert_allclose(found["probability"].to_numpy(), expected["probability"].to_numpy(), rtol=1e-6)
    assert failing.calls > 3
    failing.most = 0
    with pytest.raises(torch.OutOfMemoryError):
        model.score_arrow(RAW)


class Lost(torch.nn.Module):
    """Fails as a GPU does in whose kernel something was asserted: then, and ever after."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.calls = error, 0

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.calls += 1
        raise self.error


class AcceleratorError(RuntimeError):
    """As newer versions of torch call it."""


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), AcceleratorError("no words")], ids=str
)
def test_a_gpu_that_failed_is_no_fault_of_rows(error: RuntimeError) -> None:
    model = rich_model("late")
    lost = Lost(error)
    # not the CPU, and there is nothing to run on
    with pytest.raises(type(error), match=str(error)):
        ServedModel(model.features, lost, model.task, torch.device("meta")).score_arrow(RAW)
    assert lost.calls == 1
    told = ServedModel(model.features, lost, model.task, torch.device("cpu")).score_arrow(RAW)
    assert all(reason.startswith("the model failed: ") for reason in told["score_error"].to_pylist())


def test_what_a_row_is_at_fault_for_is_so_on_a_gpu_too() -> None:
    model = rich_model("late")
    of_shapes = Lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    told = ServedModel(model.features, of_shapes, model.task, torch.device("meta")).score_arrow(RAW)
    assert told["score_error"].null_count == 0 and of_shapes.calls > RAW.num_rows


@pytest.mark.parametrize("most", [4, 1, 0])
def test_rows_that_fail_only_together_are_transformed_in_halves(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (rows, reasons) = rich_model("digit"), with_bad_rows()
    expected = model.score_arrow(rows)
    transform, failed = FittedFeatures.transform, []

    def failing(self: FittedFeatures, given: pa.Table) -> object:
        if given.num_rows > most:
            failed.append(given.num_rows)
            raise MemoryError("too many rows at once")
        return transform(self, given)

    monkeypatch.setattr(FittedFeatures, "transform", failing)
    found = model.score_arrow(rows)
    assert len(failed) > 1
    if most:
        assert found["prediction"].equals(expected["prediction"])
        assert found["score_error"].equals(expected["score_error"])
    else:
        told = found["score_error"].to_pylist()
        alone = {place for place, reason in enumerate(told) if reason == "MemoryError: too many rows at once"}
        assert alone == set(range(rows.num_rows)) - {p for p, r in reasons.items() if r.startswith("column")}


@pytest.mark.parametrize(
    ("targets", "predicted", "said"),
    [
        (["late"], lambda outputs: 0.5, "predict gave float"),
        (["late"], lambda outputs: outputs["late"].sum().reshape(1), r"shape \(1,\) for 6 rows"),
        (["digit"], lambda outputs: outputs["digit"].argmax(1), r"shape \(6,\) for 6 rows.*\[rows, 3\]"),
        (["digit", "late"], lambda outputs: {"late": outputs["late"]}, "gave \\['late'\\].*digit, late"),
        (["digit", "late"], lambda outputs: outputs["late"], "gave Tensor.*dict of digit, late"),
        ([], lambda outputs: outputs, "prediction`, and it gave dict"),
    ],
)
def test_predictions_that_are_no_scores_are_refused_in_words(
    targets: Sequence[str], predicted: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rich_model(*targets)
    monkeypatch.setattr(type(model.task), "predict", lambda self, outputs: predicted(outputs))  # type: ignore[operator]
    with pytest.raises(ModelUnusable, match=said):
        model.score_arrow(RAW)
