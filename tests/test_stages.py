"""What a pipeline lacks is told before Spark starts, and an interrupt stays one whatever it broke."""

from __future__ import annotations

import pytest
from torchmetrics import CatMetric, Metric

from sparktrain.config import Config
from sparktrain.errors import (
    ConfigError,
    MetricWithoutDirection,
    ModelUnusable,
    SparkFailed,
)
from sparktrain.outcome import Terminated, outcome_as_exit_code
from tests.fixtures.tiny_task import TinyRegression

CONFIG = {"pipeline": "flight_delays"}


@pytest.mark.parametrize("lacking", ["read", "FEATURES", "TARGET", "RULES", "KEY"])
def test_a_data_module_without_one_of_its_names_is_refused(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.flight_delays import data
    from sparktrain.stages import check_before_spark

    monkeypatch.delattr(data, lacking)
    with pytest.raises(ConfigError, match=f"data.py lacks {lacking}; it defines read, FEATURES"):
        check_before_spark(Config.model_validate(CONFIG), ["prepare"])


def test_a_best_metric_that_the_task_lacks_is_refused_before_anything_is_prepared() -> None:
    from sparktrain.stages import check_before_spark

    config = Config.model_validate({**CONFIG, "train": {"best_metric": "aurok"}})
    with pytest.raises(ConfigError, match="no metric 'aurok'; it has: auroc"):
        check_before_spark(config, ["prepare", "train"])


def test_a_best_metric_that_the_task_lacks_or_that_has_no_direction_is_refused() -> None:
    from sparktrain.gang.supervise import check_metric

    def config(metric: str) -> Config:
        return Config.model_validate({**CONFIG, "train": {"best_metric": metric}})

    class Undirected(TinyRegression):
        def metrics(self) -> dict[str, Metric]:
            return {"spread": CatMetric()}

    for metric in ("r2", "rmse", "loss"):
        check_metric(TinyRegression(), config(metric))
    with pytest.raises(ConfigError, match=r"no metric 'auroc'; it has: r2, rmse, mae, loss$"):
        check_metric(TinyRegression(), config("auroc"))
    with pytest.raises(MetricWithoutDirection, match=r"best_metric is spread.*higher_is_better"):
        check_metric(Undirected(), config("spread"))


def test_scoring_with_the_model_that_training_did_not_register_is_refused() -> None:
    from sparktrain.scoring import score

    with pytest.raises(ModelUnusable, match=r"registered none(.|\n)*unpublished"):
        score(None, None)  # type: ignore[arg-type]


def test_a_read_that_returns_no_dataframe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.flight_delays import data
    from sparktrain import stages

    monkeypatch.setattr(data, "read", lambda spark, workspace: None)
    with pytest.raises(ConfigError, match="gave NoneType; it must return a Spark DataFrame"):
        stages._read(Config.model_validate(CONFIG), data, None, {})  # type: ignore[arg-type]


def exit_code_of(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    import typer

    with pytest.raises(typer.Exit) as ended, outcome_as_exit_code(as_json=True):
        raise error
    return ended.value.exit_code, capsys.readouterr().out


def test_an_error_that_came_of_an_interrupt_counts_as_the_interrupt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        try:
            raise Terminated
        finally:
            raise SparkFailed("Scoring failed", "Answer from Java side is empty", None)
    except SparkFailed as error:
        code, out = exit_code_of(error, capsys)
    assert code == 143 and '"status": "killed"' in out


def test_an_unforeseen_error_is_an_answer_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = exit_code_of(ZeroDivisionError("by nothing"), capsys)
    assert code == 5 and "unexpected ZeroDivisionError: by nothing" in out
