"""Modules that know nothing of batches: what they are given, by which loss they learn, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanAbsoluteError

from sparktrain.config import DataConfig, TrainConfig
from sparktrain.dataset import Dataset, open_dataset
from sparktrain.errors import ConfigError, OutputsUnfit, StepFailed
from sparktrain.features import FittedFeatures
from sparktrain.testing import TargetKind, run_ranks, write_tiny_dataset
from sparktrain.training.checkpoint import newest_valid, open_checkpoint
from sparktrain.training.loop import Loop
from sparktrain.training.module_task import LOSSES, ModuleTask, OfTarget
from sparktrain.training.task import BinaryClassification, TrainTask
from sparktrain.world import World
from tests.fixtures.tiny_task import TINY_CONFIG, metric_curve

pytestmark = pytest.mark.timeout(180)

COLUMNS = 3


class Net(nn.Sequential):
    """As people write it: tensors in, [rows, 1] out."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(COLUMNS, 8), nn.ReLU(), nn.Linear(8, 1))


class OfClasses(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(COLUMNS, 8), nn.ReLU(), nn.Linear(8, 3))


class Two(nn.Module):
    """Two arguments, two outputs."""

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, 4)
        self.hidden, self.out = nn.Linear(COLUMNS + 4, width), nn.Linear(width, 2)

    def forward(self, numbers: Tensor, code: Tensor) -> dict[str, Tensor]:
        hidden = torch.relu(self.hidden(torch.cat([numbers, self.embedding(code)], dim=1)))
        late, minutes = self.out(hidden).split(1, dim=1)
        return {"label": late, "label_1": minutes}


class Late(ModuleTask):
    module = Net
    loss_name = "binary_cross_entropy_with_logits"


class Level(ModuleTask):
    module = OfClasses
    loss_name = "cross_entropy"


class Minutes(ModuleTask):
    module = Net
    loss_name = "mse_loss"


@dataclass(frozen=True)
class Both(ModuleTask):
    loss_name: ClassVar = {"label": "binary_cross_entropy_with_logits", "label_1": "huber_loss"}
    loss_weights: ClassVar = {"label_1": 0.5}
    inputs = (("numeric_0", "numeric_1", "numeric_2"), "category_0")
    width: int = 16

    def module(self, features: FittedFeatures) -> nn.Module:
        return Two(features.categorical[0].num_codes, self.width)


TASKS: dict[TargetKind, type[ModuleTask]] = {"binary": Late, "multiclass": Level, "regression": Minutes}


def tiny(path: Path, *kinds: TargetKind, **options: Any) -> Dataset:
    columns: dict[str, Any] = {"num_numeric": COLUMNS, "num_categorical": 0, "target_kinds": kinds}
    rows = {"validation_rows": 50, "test_rows": 41}
    return write_tiny_dataset(path / "tiny", 650, **{**columns, **rows, **options})


def train_rank(task: TrainTask, dataset: Path, config: TrainConfig, directory: Path) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    world = World.from_environment()
    config = config.model_copy(update={"ranks": world.size})

    def keep(event: Mapping[str, Any]) -> None:
        events.append({**event})

    masked = DataConfig(tail="mask")
    loop = Loop(task, open_dataset(dataset), config, world, directory, keep, masked)
    return {
        "metrics": loop.run(newest_valid(directory)).metrics,
        "losses": metric_curve(events, "train/loss"),
    }


def config(**changes: Any) -> TrainConfig:
    return TINY_CONFIG.model_copy(update={"epochs": 3, **changes})


@pytest.mark.parametrize("kind", TASKS)
def test_three_lines_train_an_unmodified_module(tmp_path: Path, kind: TargetKind) -> None:
    dataset = tiny(tmp_path, kind)
    found = train_rank(TASKS[kind](), dataset.path, config(), tmp_path)
    metric = {"binary": "auroc", "multiclass": "accuracy", "regression": "r2"}[kind]
    assert found["metrics"][f"test/{metric}"] > 0.75
    assert min(found["losses"].values()) < 0.7 * found["losses"][10]
    saved = newest_valid(tmp_path)
    assert saved is not None
    weights = {
        n.removeprefix("model/") for n in open_checkpoint(saved.path).tensors if n.startswith("model/")
    }
    assert weights == set(TASKS[kind].module().state_dict()), "the module keeps the names of its weights"


@pytest.mark.ranks
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_learn_two_targets_from_two_inputs_as_one_does(tmp_path: Path, strategy: str) -> None:
    dataset = tiny(tmp_path, "binary", "regression", num_categorical=1)
    plan = config(best_metric="label_1_r2", strategy=strategy)
    alone = train_rank(Both(), dataset.path, plan, tmp_path / "alone")
    together = run_ranks(2, train_rank, Both(), dataset.path, plan, tmp_path / "two")
    names = {"label_auroc", "label_average_precision", "label_accuracy", "label_1_r2", "label_1_rmse"}
    assert {f"test/{name}" for name in names} < alone["metrics"].keys()
    assert alone["metrics"]["test/label_auroc"] > 0.85 and alone["metrics"]["test/label_1_r2"] > 0.6
    assert together[0]["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for rank in together:
        assert rank["metrics"] == pytest.approx(alone["metrics"], rel=1e-3)


@pytest.mark.ranks
def test_a_rank_without_a_row_to_evaluate_agrees_on_each_targets_metrics(tmp_path: Path) -> None:
    dataset = tiny(tmp_path, "binary", "regression", num_categorical=1, test_rows=1)
    plan = config(max_steps=2, best_metric="label_1_mae")
    alone = train_rank(Both(), dataset.path, plan, tmp_path / "alone")["metrics"]
    together = run_ranks(2, train_rank, Both(), dataset.path, plan, tmp_path / "two")
    assert alone["test/label_1_mae"] > 0
    for rank in together:
        assert rank["metrics"] == pytest.approx(alone, rel=1e-3, nan_ok=True)


def test_the_losses_of_targets_are_added_by_their_weights() -> None:
    random = torch.Generator().manual_seed(0)
    outputs = {name: torch.randn(5, 1, generator=random) for name in ("label", "label_1")}
    target = {"label": torch.tensor([0.0, 1, 1, 0, 1]), "label_1": torch.randn(5, generator=random)}
    cross = functional.binary_cross_entropy_with_logits(
        outputs["label"][:, 0], target["label"], reduction="none"
    )
    huber = functional.huber_loss(outputs["label_1"][:, 0], target["label_1"], reduction="none")
    torch.testing.assert_close(Both().loss(outputs, target), cross + 0.5 * huber)
    predicted = Both().predict(outputs)
    torch.testing.assert_close(predicted["label"], torch.sigmoid(outputs["label"][:, 0]))
    torch.testing.assert_close(predicted["label_1"], outputs["label_1"][:, 0])


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_is_torchs_own_of_each_row(name: str) -> None:
    task = type("Named", (ModuleTask,), {"module": Net, "loss_name": name})()
    random = torch.Generator().manual_seed(0)
    outputs = torch.rand(6, 1, generator=random)
    target: Tensor = (torch.rand(6, generator=random) > 0.5).float()
    if "auroc" in task.metrics() and "average_precision" not in task.metrics():
        outputs, target = torch.randn(6, 3, generator=random).log_softmax(1), torch.tensor([0, 1, 2, 2, 1, 0])
    losses = task.loss(outputs, target)
    wanted = getattr(functional, name)(outputs.squeeze(1), target)
    assert losses.shape == (6,) and losses.mean() == pytest.approx(float(wanted))
    assert task.predict(outputs).shape == outputs.squeeze(1).shape


def test_predictions_are_on_the_targets_scale() -> None:
    def predicted(name: str, outputs: list[float]) -> Tensor:
        task = type("Named", (ModuleTask,), {"module": Net, "loss_name": name})()
        found: Tensor = task.predict(torch.tensor([outputs]))
        return found[0]

    logs = torch.tensor([0.2, 0.3, 0.5]).log().tolist()
    assert predicted("nll_loss", logs).tolist() == pytest.approx([0.2, 0.3, 0.5])
    assert float(predicted("poisson_nll_loss", [2.0])) == pytest.approx(7.389, rel=1e-3)
    assert float(predicted("binary_cross_entropy", [0.3])) == pytest.approx(0.3)


def test_a_row_of_several_losses_counts_their_mean() -> None:
    outputs, target = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    assert Minutes().loss(outputs, target).tolist() == [2.5, 5.0]
    logits = torch.zeros(2, 3, 4)  # [rows, classes, positions]
    losses = Level().loss(logits, torch.zeros(2, 4, dtype=torch.int64))
    assert losses.tolist() == pytest.approx([1.0986, 1.0986], rel=1e-4)


def test_the_only_feature_is_handed_on_as_it_is(tmp_path: Path) -> None:
    class Single(ModuleTask):
        module = nn.Identity
        loss_name = "mse_loss"

    dataset = tiny(tmp_path, "regression", num_numeric=1)
    batch = next(iter(dataset.stream("train", 32, num_lanes=4)))
    assert torch.equal(Single().build_model(dataset.features)(batch), batch["numeric_0"])


def test_a_function_of_the_features_makes_the_module(tmp_path: Path) -> None:
    def make(features: FittedFeatures) -> nn.Module:
        return nn.Linear(len(features.numeric), 1)

    class ByFunction(ModuleTask):
        module = make
        loss_name = "mse_loss"

    model = ByFunction().build_model(tiny(tmp_path, "regression").features)
    assert isinstance(model, nn.Linear) and model.in_features == COLUMNS


def test_a_field_lets_the_configuration_choose_the_loss(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Chosen(ModuleTask):
        module = Net
        loss_name: str = "mse_loss"

    task = cloudpickle.loads(cloudpickle.dumps(Chosen(loss_name="l1_loss")))
    assert asdict(task) == {"loss_name": "l1_loss"}
    assert task.loss(torch.tensor([[3.0]]), torch.tensor([1.0])).tolist() == [2.0]
    with pytest.raises(ConfigError, match=r"no loss `l2_loss` \(did you mean `l1_loss`\?\)"):
        Chosen(loss_name="l2_loss").metrics()


def test_the_module_is_no_field(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Fielded(ModuleTask):
        loss_name = "mse_loss"
        module: Any = Net

    with pytest.raises(ConfigError, match="module is a field; set it in the class"):
        Fielded().build_model(tiny(tmp_path, "regression").features)


def define(**attributes: Any) -> ModuleTask:
    return type("Task", (ModuleTask,), {"module": Net, "loss_name": "mse_loss", **attributes})()


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (
            {"loss_name": "cros_entropy"},
            r"no loss `cros_entropy` \(did you mean `cross_entropy`\?\); there are: b",
        ),
        ({"loss_name": {"a": "mseloss"}}, r"no loss `mseloss` \(did you mean `mse_loss`\?\)"),
        ({"loss": "mse_loss"}, r"loss = 'mse_loss': the name of a loss is given as loss_name"),
        ({"module": Net()}, "module is a module that is made already; give its class"),
    ],
)
def test_a_wrong_class_is_refused_where_it_is_defined(attributes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        define(**attributes)


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"loss_name": None}, r"loss_name is missing; there are: binary_cross_entropy_with_logits, "),
        ({"module": None}, "module is missing"),
        ({"module": nn.Linear}, r"define module\(self, features\), which returns Linear\(in_features, "),
        (
            {"inputs": ("numeric_9",)},
            r"no feature `numeric_9` \(did you mean `numeric_\d`\?\); there are: numeric_0",
        ),
        ({"inputs": ((),)}, "an empty tuple"),
        (
            {"loss_name": "cross_entropy"},
            r"cross_entropy is for a multiclass target, `label` is regression; .*mse_",
        ),
        ({"loss_name": {"label": "mse_loss"}}, "else one name; the targets are: label"),
        ({"loss_weights": {"label": 2.0}}, "loss_weights: there is no loss of a target `label`"),
    ],
)
def test_what_does_not_fit_the_features_is_refused(
    tmp_path: Path, attributes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        define(**attributes).build_model(tiny(tmp_path, "regression").features)


def test_what_would_be_left_out_is_named_with_the_way_out(tmp_path: Path) -> None:
    features = tiny(tmp_path, "regression", num_numeric=2, num_categorical=2).features
    with pytest.raises(ConfigError) as refused:
        Minutes().build_model(features)
    assert "side by side: category_0, category_1; say what goes where" in str(refused.value)
    assert "inputs = (('numeric_0', 'numeric_1'), 'category_0')" in str(refused.value)


def test_losses_by_target_are_held_against_the_targets(tmp_path: Path) -> None:
    features = tiny(tmp_path, "binary", "regression").features
    wrong = define(loss_name={"label": "mse_loss", "labl_1": "mse_loss"}, loss_weights={"other": 1.0})
    with pytest.raises(ConfigError) as refused:
        wrong.build_model(features)
    assert len(refused.value.problems) == 3
    assert "no target `labl_1` (did you mean `label_1`?)" in str(refused.value)
    with pytest.raises(ConfigError, match="by target where there are several"):
        Minutes().build_model(features)


class Wide(nn.Linear):
    def __init__(self) -> None:
        super().__init__(COLUMNS, 2)


class Lists(Net):
    def forward(self, numbers: Tensor) -> Any:
        return [super().forward(numbers)]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (Wide, r"gave shape \(32, 2\); mse_loss needs \[rows\] for a target of shape \(32,\)"),
        (Lists, "gave list"),
    ],
)
def test_outputs_that_do_not_fit_the_loss_are_told(tmp_path: Path, module: type, text: str) -> None:
    dataset = tiny(tmp_path, "regression")
    with pytest.raises(StepFailed) as failed:
        train_rank(define(module=module), dataset.path, config(), tmp_path)
    with pytest.raises(OutputsUnfit, match=text):
        raise failed.value.__cause__  # type: ignore[misc]


def test_a_missing_output_and_one_without_classes_are_told() -> None:
    with pytest.raises(OutputsUnfit, match=r"gave \['label'\]; there is a loss for each of label, label_1"):
        Both().loss({"label": torch.zeros(2)}, {})
    with pytest.raises(OutputsUnfit, match=r"cross_entropy needs \[rows, classes\]"):
        Level().loss(torch.zeros(2), torch.zeros(2, dtype=torch.int64))


def test_a_metric_of_a_target_keeps_its_direction_and_its_rows_apart() -> None:
    metric = OfTarget(MeanAbsoluteError(), "b")
    assert metric.higher_is_better is False
    columns = {"a": torch.zeros(2), "b": torch.tensor([1.0, 3.0])}
    metric.update(columns, {"a": torch.ones(2), "b": torch.zeros(2)})
    assert float(metric.compute()) == 2.0
    metric.reset()
    metric.update(columns, {"b": torch.tensor([1.0, 3.0])})
    assert float(metric.compute()) == 0.0


def test_what_follows_from_a_loss_is_that_of_the_written_out_task() -> None:
    written = {name: type(metric) for name, metric in BinaryClassification.metrics(Late()).items()}
    assert {name: type(metric) for name, metric in Late().metrics().items()} == written
