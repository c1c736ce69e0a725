"""Targets of every kind, several at once, weights, and arrays of the wrong size."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from pyspark.sql import DataFrame, SparkSession

from sparktrain.config import PrepareConfig, SplitConfig
from sparktrain.dataset import Dataset
from sparktrain.dataset.statistics import Statistics
from sparktrain.errors import FeaturesInvalid, RulesInvalid, TooManyClasses, ValuesRefused
from sparktrain.features import Feature, Image, Numeric, Target, Vector
from sparktrain.preparation import Rule, fit, prepare
from sparktrain.preparation.spooling import QUARANTINE
from tests.preparation.conftest import Preparing

pytestmark = pytest.mark.spark

CONFIG = PrepareConfig(split=SplitConfig(validation=0.3, test=0.0), num_parts=2, max_quarantined_fraction=1.0)
TARGETS = [
    Target("text", kind="multiclass"),
    Target("number", kind="multiclass", column="integer"),
    Target("flag", kind="multiclass"),
    Target("yes"),
    Target("amount", kind="regression"),
]


@pytest.fixture(scope="module")
def source(spark: SparkSession) -> DataFrame:
    return spark.range(0, 300, 1, 3).selectExpr(
        "id",
        "cast(id as double) as x",
        "if(id = 7, null, element_at(array('ä', 'b', 'B', ''), cast(id % 4 as int) + 1)) as text",
        "cast(element_at(array(10, 9, -1), cast(id % 3 as int) + 1) as smallint) as integer",
        "id % 2 = 0 as flag",
        "if(id = 8, 2, id % 2) as yes",
        "if(id = 9, double('inf'), id / 10) as amount",
        "if(id = 10, -1, id % 5) as weight",
    )


@pytest.fixture(scope="module")
def several(source: DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("several")
    return prepare(
        source, [Numeric("x", normalize="none")], TARGETS, CONFIG, root=root, key=["id"], weight="weight"
    )


def test_several_targets_and_a_weight_are_columns_of_their_own(several: Dataset, source: DataFrame) -> None:
    assert several.manifest.quarantined == {
        "target_missing": 1, "target_not_binary": 1, "target_not_finite": 1, "weight_invalid": 1,
    }  # fmt: skip
    found = [(c.name, c.dtype, c.role) for c in several.manifest.columns]
    assert found == [
        ("row_id", "int64", "row_id"), ("x", "float32", "feature"), ("text", "int64", "target"),
        ("number", "int64", "target"), ("flag", "int64", "target"), ("yes", "float32", "target"),
        ("amount", "float32", "target"), ("weight", "float32", "weight"),
    ]  # fmt: skip
    classes = {t.name: t.classes for t in several.features.targets}
    # by value: integers by size, text by code points, false before true
    assert classes == {
        "text": ("", "B", "b", "ä"), "number": ("-1", "9", "10"), "flag": ("false", "true"), "yes": (),
        "amount": (),
    }  # fmt: skip
    raw = {row["id"]: row for row in source.collect()}
    seen = 0
    for split in ("train", "validation"):
        for row in several.to_arrow(split).to_pylist():
            given = raw[int(row["x"])]
            assert classes["text"][row["text"]] == given["text"]
            assert classes["number"][row["number"]] == str(given["integer"])
            assert row["flag"] == int(given["flag"]) and row["yes"] == given["yes"]
            assert row["amount"] == np.float32(given["amount"])
            seen += 1
    assert seen == 296 == several.manifest.rows_kept


def test_weights_have_mean_one_over_the_training_rows(several: Dataset, source: DataFrame) -> None:
    weights = several.to_arrow("train", ["weight"])["weight"].to_numpy().astype(np.float64)
    assert weights.mean() == pytest.approx(1.0, abs=1e-6) and weights.min() == 0.0
    scale = several.features.weight.scale
    raw = {row["id"]: row["weight"] for row in source.collect()}
    for row in several.to_arrow("validation", ["x", "weight"]).to_pylist():
        assert row["weight"] == np.float32(raw[int(row["x"])] / scale)


def test_targets_are_counted_by_split(several: Dataset) -> None:
    counted = {(t.name, t.split): t for t in Statistics.load(several.path).targets}
    assert set(counted) == {(t.name, split) for t in TARGETS for split in ("train", "validation")}
    for split in ("train", "validation"):
        table = several.to_arrow(split)
        for target in several.features.targets:
            values, found = table[target.name].to_pylist(), counted[target.name, split]
            if target.kind == "regression":
                assert (found.mean, found.deviation) == pytest.approx(
                    (np.mean(values), np.std(values)), rel=1e-6
                )
                continue
            names = target.classes or ("0", "1")
            assert found.values == {names[int(code)]: count for code, count in Counter(values).items()}


def test_a_batch_has_every_target_and_the_weight(several: Dataset) -> None:
    batch = next(iter(several.stream("train", 32)))
    assert {name: str(batch[name].dtype) for name in ("text", "yes", "amount", "weight", "row_weight")} == {
        "text": "torch.int64", "yes": "torch.float32", "amount": "torch.float32", "weight": "torch.float32",
        "row_weight": "torch.float32",
    }  # fmt: skip


def test_a_class_seen_only_outside_of_training_is_a_class(spark: SparkSession, preparing: Preparing) -> None:
    df = spark.range(40).selectExpr(
        "id", "1D as x", "if(id < 30, 'train', 'validation') as part", "if(id < 30, 'a', 'b') as kind"
    )
    config = CONFIG.model_copy(update={"split": SplitConfig(method="column", column="part")})
    dataset = preparing(df, [Numeric("x")], Target("kind", kind="multiclass"), config, rules=())
    assert dataset.features.target.classes == ("a", "b")
    assert set(dataset.to_arrow("train")["kind"].to_pylist()) == {0}
    assert set(dataset.to_arrow("validation")["kind"].to_pylist()) == {1}


def test_too_many_classes_are_refused_in_words(
    spark: SparkSession, preparing: Preparing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "MAX_CLASSES", 39)
    df = spark.range(40).selectExpr("id", "1D as x")
    target = Target("kind", column="id", kind="multiclass")
    with pytest.raises(TooManyClasses, match="`kind` has 40 classes, a multiclass target may have 39"):
        preparing(df, [Numeric("x")], target, CONFIG, rules=())
    monkeypatch.setattr(fit, "MAX_CLASSES", 40)
    assert len(preparing(df, [Numeric("x")], target, CONFIG, rules=()).features.target.classes) == 40


@pytest.mark.parametrize(
    ("targets", "weight", "problem"),
    [
        ([Target("yes"), Target("YES", column="flag")], None, "declared twice: `yes`, `YES`"),
        ([Target("yes"), Target("x", column="flag")], None, "declared twice: `x`"),
        ([Target("weight", column="yes")], "weight", "declared twice: `weight`"),
        ([Target("yes")], "yes", "declared twice: `yes`"),
        ([Target("late", column="yes")], "yes", "the weight `yes` is the target's column"),
        ([Target("row_weight", column="yes")], None, "names that sparktrain uses itself: `row_weight`"),
        ([], None, "there is no target"),
    ],
)
def test_names_that_clash_are_refused(
    source: DataFrame,
    preparing: Preparing,
    tmp_path: Path,
    targets: list[Target],
    weight: str | None,
    problem: str,
) -> None:
    with pytest.raises(FeaturesInvalid, match=problem):
        preparing(source, [Numeric("x")], targets, rules=(), weight=weight)
    assert list(tmp_path.iterdir()) == []


# --- arrays -----------------------------------------------------------------------------------------


def encoded(size: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    Pillow.new("RGB", size, (10, 20, 30)).save(content, "PNG")
    return content.getvalue()


SHAPED: list[Feature] = [
    Vector("numbers", shape=(2, 2)),
    Vector("packed", shape=3, dtype="int32", column="some bytes"),
    Vector("twice", shape=4, dtype="float64", column="numbers"),
]


def test_rows_of_another_size_are_quarantined(spark: SparkSession, preparing: Preparing, ansi: str) -> None:
    whole = np.arange(3, dtype="<i4").tobytes()
    values: list[tuple[Any, ...]] = [
        (0, [1.0, 2.0, 3.0, 4.0], whole), (1, [1.0, 2.0, 3.0], whole), (2, [], whole), (3, [1.0] * 5, whole),
        (4, None, whole), (5, [1.0, None, float("nan"), 4.0], whole), (6, [1.0] * 4, whole[:-1]),
        (7, [1.0] * 4, b""), (8, [1.0, 2.0, 3.0, 4.0], None), (9, [], whole * 2),
    ]  # fmt: skip
    df = spark.createDataFrame(values, "id long, numbers array<float>, `some bytes` binary")
    config = CONFIG.model_copy(update={"split": SplitConfig(validation=0.0, test=0.0)})
    dataset = preparing(
        df.selectExpr("*", "1 as bought"), SHAPED, config=config, rules=[Rule("known", "id is not null")]
    )
    assert dataset.manifest.quarantined == {"numbers_wrong_size": 4, "some bytes_wrong_size": 2}
    rejected = spark.read.parquet(str(dataset.path / QUARANTINE)).selectExpr(
        "rule", "get_json_object(row, '$.id')"
    )
    assert sorted(map(tuple, rejected.collect())) == [
        *[("numbers_wrong_size", number) for number in "1239"], *[("some bytes_wrong_size", n) for n in "67"],
    ]  # fmt: skip
    kept = sorted(map(str, dataset.to_arrow("train").select(["numbers", "packed", "twice"]).to_pylist()))
    expected = [
        (v[1] or [0, 0, 0, 0], [0, 1, 2] if v[2] else [0, 0, 0]) for v in values if v[0] in (0, 4, 5, 8)
    ]
    clean = [
        ([0.0 if x is None or x != x else float(x) for x in numbers], ints) for numbers, ints in expected
    ]
    assert kept == sorted(str({"numbers": n, "packed": b, "twice": n}) for n, b in clean)


def test_a_rule_of_that_name_is_refused(spark: SparkSession, preparing: Preparing) -> None:
    df = spark.sql("select 1L as id, array(1) as v, 1 as bought")
    with pytest.raises(RulesInvalid, match="`v_wrong_size`: 2 rules have this name"):
        preparing(df, [Vector("v", shape=1)], rules=[Rule("v_wrong_size", "id > 0")])


def test_images_that_can_not_be_decoded_are_counted_in_the_error(
    spark: SparkSession, preparing: Preparing, tmp_path: Path
) -> None:
    good, small = encoded((4, 3)), encoded((2, 2))
    images = [good, bytes(range(36)), None, small, b"no image", b"\\x89PNG", good]
    df = spark.createDataFrame(list(enumerate(images)), "id long, picture binary").selectExpr(
        "*", "1 as bought"
    )
    config = CONFIG.model_copy(update={"split": SplitConfig(validation=0.0, test=0.0), "num_parts": 1})
    features: list[Feature] = [Image("picture", shape=(3, 4, 3))]
    with pytest.raises(ValuesRefused) as caught:
        preparing(df, features, config=config, rules=())
    assert "1 image of another size than 3 x 4" in caught.value.columns["picture"]
    assert "2 images that" in caught.value.columns["picture"]
    assert list((tmp_path / "datasets" / "shop").iterdir()) == []
    dataset = preparing(df, features, config=config, rules=[Rule("sound", "id not in (3, 4, 5)")])
    pixels = {tuple(row) for row in dataset.to_arrow("train")["picture"].to_pylist()}
    assert pixels == {(10, 20, 30) * 12, tuple(range(36)), (0,) * 36}


def test_refused_values_of_several_parts_say_so(spark: SparkSession, preparing: Preparing) -> None:
    df = spark.range(40).selectExpr("id", "array(1D, double('nan')) as v", "1 as bought")
    config = PrepareConfig(split=SplitConfig(validation=0.0, test=0.0), num_parts=4)
    with pytest.raises(ValuesRefused, match="`v`: 10 NaNs or infinities in one part, more in 3 others"):
        preparing(df, [Vector("v", shape=2, fill="fail")], config=config, rules=())
