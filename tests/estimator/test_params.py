"""Params of the estimators, held against what pyspark's own classifiers and regressors do; no Spark runs."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyspark.ml.classification import MultilayerPerceptronClassifier
from pyspark.ml.param import Param
from pyspark.ml.regression import GeneralizedLinearRegression

from sparktrain import TorchClassificationModel, TorchClassifier, TorchRegressionModel, TorchRegressor
from sparktrain.errors import ModelUnusable
from sparktrain.estimator.params import declared_features
from sparktrain.features import Categorical, Numeric

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OURS = [TorchClassifier, TorchRegressor]
MODELS = [TorchClassificationModel, TorchRegressionModel]


@pytest.fixture(scope="module", autouse=True)
def java(spark: SparkSession) -> SparkSession:
    """pyspark's own classes make an object in the JVM at once; ours need none."""
    return spark


ALL = [*OURS, MultilayerPerceptronClassifier, GeneralizedLinearRegression]


@pytest.mark.spark
class TestAsPysparksOwn:
    """Each check passes for pyspark's own classes, too; a check that does not is wrong."""

    @pytest.mark.parametrize("kind", ALL)
    def test_every_param_has_a_doc_a_getter_and_a_parent(self, kind: type[Any]) -> None:
        made = kind()
        assert made.params == sorted(made.params, key=lambda param: param.name)
        for param in made.params:
            assert param.doc and param.parent == made.uid
            assert getattr(made, param.name) is param
            assert callable(getattr(made, f"get{param.name[0].upper()}{param.name[1:]}")), param.name
            assert made.hasParam(param.name) and made.getParam(param.name) is param

    @pytest.mark.parametrize("kind", ALL)
    def test_every_param_of_the_constructor_has_a_setter_that_returns_the_estimator(
        self, kind: type[Any]
    ) -> None:
        made = kind()
        for name in inspect.signature(kind.__init__).parameters:
            if name == "self":
                continue
            param = made.getParam(name)
            value = made.getOrDefault(param) if made.isDefined(param) else None
            if value is not None:
                assert getattr(made, f"set{name[0].upper()}{name[1:]}")(value) is made
                assert made.isSet(param)

    @pytest.mark.parametrize("kind", ALL)
    def test_the_constructors_defaults_are_those_of_the_params(self, kind: type[Any]) -> None:
        made = kind()
        for name, argument in inspect.signature(kind.__init__).parameters.items():
            if name == "self" or argument.default is None:
                continue
            assert made.getOrDefault(name) == argument.default, name
            assert not made.isSet(name), "a default is no choice of the user's"

    @pytest.mark.parametrize("kind", ALL)
    def test_arguments_are_given_by_name_only(self, kind: type[Any]) -> None:
        with pytest.raises(TypeError):
            kind("features")
        with pytest.raises(TypeError):
            kind(noSuchParam=1)

    @pytest.mark.parametrize("kind", ALL)
    def test_a_value_of_another_type_is_refused_by_the_params_name(self, kind: type[Any]) -> None:
        with pytest.raises(TypeError, match="maxIter"):
            kind(maxIter="many")
        assert kind(maxIter=7.0).getMaxIter() == 7
        assert kind(stepSize=1).getStepSize() == 1.0 if hasattr(kind, "setStepSize") else True

    @pytest.mark.parametrize("kind", ALL)
    def test_explain_params_tells_docs_defaults_and_values(self, kind: type[Any]) -> None:
        made = kind(maxIter=7)
        text = made.explainParams()
        assert len(text.splitlines()) >= len(made.params)
        assert made.explainParam("maxIter").startswith("maxIter: ")
        assert "default: " in made.explainParam("maxIter") and "current: 7" in made.explainParam("maxIter")
        assert "undefined" in made.explainParam("weightCol" if made.hasParam("weightCol") else "thresholds")

    @pytest.mark.parametrize("kind", ALL)
    def test_a_copy_has_the_uid_and_the_values_and_leaves_the_original_alone(self, kind: type[Any]) -> None:
        made = kind(maxIter=7)
        copied = made.copy({made.maxIter: 3, made.featuresCol: "f"})
        assert type(copied) is kind and copied.uid == made.uid
        assert (copied.getMaxIter(), copied.getFeaturesCol()) == (3, "f")
        assert (made.getMaxIter(), made.getFeaturesCol()) == (7, "features")
        copied.setMaxIter(9)
        assert made.getMaxIter() == 7

    @pytest.mark.parametrize("kind", ALL)
    def test_uids_are_of_the_class_and_never_the_same(self, kind: type[Any]) -> None:
        first, second = kind(), kind()
        assert first.uid != second.uid
        assert first.uid.startswith(f"{kind.__name__}_") and str(first) == first.uid

    @pytest.mark.parametrize("kind", ALL)
    def test_the_param_map_has_defaults_values_and_extras_in_this_order(self, kind: type[Any]) -> None:
        made = kind(maxIter=7)
        assert made.extractParamMap()[made.maxIter] == 7
        assert made.extractParamMap({made.maxIter: 8})[made.maxIter] == 8
        made.clear(made.maxIter)
        assert made.getMaxIter() == kind().getMaxIter() and not made.isSet("maxIter")

    @pytest.mark.parametrize("kind", ALL)
    def test_set_params_sets_several_and_returns_the_estimator(self, kind: type[Any]) -> None:
        made = kind()
        assert made.setParams(maxIter=3, labelCol="y") is made
        assert (made.getMaxIter(), made.getLabelCol()) == (3, "y")

    @pytest.mark.parametrize("kind", ALL)
    def test_a_param_of_another_estimator_is_no_param_of_this_one(self, kind: type[Any]) -> None:
        made, other = kind(), kind()
        with pytest.raises(ValueError, match="does not belong"):
            made.set(other.maxIter, 3)


@pytest.mark.spark
@pytest.mark.parametrize("kind", OURS)
def test_every_param_of_ours_is_an_argument_of_the_constructor(kind: type[Any]) -> None:
    arguments = set(inspect.signature(kind.__init__).parameters) - {"self"}
    assert arguments == {param.name for param in kind().params}


@pytest.mark.spark
@pytest.mark.parametrize("kind", MODELS)
def test_a_model_has_its_estimators_params_but_no_life_of_its_own(kind: type[Any]) -> None:
    made = kind()
    assert {p.name for p in made.params} == {p.name for p in OURS[MODELS.index(kind)]().params}
    with pytest.raises(ModelUnusable, match="take what fit or load returns"):
        _ = made.numFeatures


@pytest.mark.spark
def test_declared_features_are_kept_as_plain_values() -> None:
    features = [Numeric("distance", clip=(0, None)), Categorical("carrier", max_size=10)]
    made = TorchClassifier(declaredFeatures=features)
    plain = made.getDeclaredFeatures()
    assert plain[1]["max_size"] == 10 and declared_features(plain) == features
    assert TorchClassifier(declaredFeatures=plain).getDeclaredFeatures() == plain
    with pytest.raises(TypeError, match="declaredFeatures"):
        TorchClassifier(declaredFeatures=[{"kind": "no such", "name": "x"}])
    with pytest.raises(TypeError, match="declaredFeatures"):
        TorchClassifier(declaredFeatures="distance")


@pytest.mark.spark
@pytest.mark.parametrize("name", ["config", "taskArguments"])
def test_settings_are_plain_values_by_name(name: str) -> None:
    assert TorchClassifier(**{name: {"a.b": [1, None, "x"]}}).getOrDefault(name) == {"a.b": [1, None, "x"]}
    for wrong in ([1], {1: 2}, {"a": object()}):
        with pytest.raises(TypeError, match=name):
            TorchClassifier(**{name: wrong})


@pytest.mark.spark
def test_params_of_ours_are_of_pysparks_type() -> None:
    assert all(type(param) is Param for param in TorchClassifier().params)


@pytest.mark.spark
@pytest.mark.parametrize("kind", OURS)
def test_the_document_names_every_param_and_its_default(kind: type[Any]) -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "estimator.md"
    table = document.read_text(encoding="utf-8").partition("## Params")[2].partition("## ")[0]
    made = kind()
    for param in made.params:
        rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
        [row] = [row for row in rows if f"`{param.name}`" in row[1]]
        if param.name in ("maxIter", "batchSize", "numWorkers", "patience", "validationFraction", "stepSize"):
            assert row[2].strip() == str(made.getOrDefault(param)), param.name


def test_sparktrain_is_imported_without_pyspark() -> None:
    program = (
        "import sys, sparktrain; assert 'pyspark' not in sys.modules; "
        "from sparktrain import TorchClassifier; assert 'pyspark' in sys.modules; "
        "assert 'TorchRegressor' in dir(sparktrain) or sparktrain.TorchRegressor"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
