"""ModuleTask: a Task of two words, a module that knows nothing of batches and a loss of torch by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FunctionType, MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from sparktrain.errors import ConfigError, OutputsUnfit
from sparktrain.features import FittedFeatures
from sparktrain.training.module_inputs import Inputs, default_inputs, take_inputs, unknown, wrong_inputs
from sparktrain.training.task import (
    Batch,
    BinaryClassification,
    MulticlassClassification,
    Regression,
    TrainTask,
)


class ModuleTask(TrainTask):
    """A Task for a module that takes tensors, such as one written elsewhere; it stays as it is.

        class Task(ModuleTask):
            module = Net
            loss_name = "cross_entropy"

    What it predicts and its metrics are those of `BinaryClassification`, `MulticlassClassification` and
    `Regression`. All but `module` can be a field of a frozen dataclass instead, set by `train.model`.

    Attributes:
        module: a class, made without arguments; or a function of the fitted features that makes a module,
            also as a method. Outputs of shape [rows, 1] count as [rows].
        loss_name: a key of `LOSSES`. For several targets: one for each by the target's name; the module
            returns a dict by these names, and so does `predict`. A metric is called "<target>_<metric>".
        inputs: what `forward` is given, by position: the column of a name, [rows, *shape]; for a tuple of
            names those columns, of plain numbers, side by side, [rows, names]. None: the only feature as it
            is, or all numeric ones side by side, if there are no others (passed through ones do not count).
        loss_weights: what a target's loss is multiplied with before they are added, 1 if not given.

    Raises:
        ConfigError: in the definition of the class, or in `build_model` where it takes the features to know.
    """

    module: ClassVar[Any]
    loss_name: str | Mapping[str, str]
    inputs: Inputs | str | None = None
    loss_weights: Mapping[str, float] = MappingProxyType({})

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        made, name = cls.__dict__.get("module"), cls.__dict__.get("loss_name")
        if isinstance(made, FunctionType) and len(inspect.signature(made).parameters) == 1:
            cls.module = staticmethod(made)  # no method: Python would give it the Task
        problems = list(_unknown_losses(name)) if isinstance(name, str | Mapping) else []
        if isinstance(made, nn.Module):
            problems.append(
                "module is a module that is made already; give its class, or a function of features"
            )
        if isinstance(given := cls.__dict__.get("loss"), str):
            problems.append(f"loss = {given!r}: the name of a loss is given as loss_name; loss is a method")
        if problems:
            raise ConfigError(problems, _name(cls))

    def build_model(self, features: FittedFeatures) -> nn.Module:
        """Make the module; it takes a `Batch` and hands on what `inputs` says. Weights keep their names."""
        arguments = self.arguments(features)
        module = self.make_module(features)
        module.register_forward_pre_hook(lambda _, given: arguments(*given))
        return module

    def make_module(self, features: FittedFeatures) -> nn.Module:
        """Make the module as it is."""
        made = inspect.getattr_static(self, "module", None)
        if made is None:
            raise ConfigError(["module is missing: give an nn.Module class"], _name(type(self)))
        if "module" in vars(self):  # would not survive as JSON, which a registered model is made from again
            raise ConfigError(
                ["module is a field; set it in the class, without annotation"], _name(type(self))
            )
        if not isinstance(made, type):
            return self.module(features)  # type: ignore[no-any-return]
        try:
            inspect.signature(made).bind()
        except TypeError as error:
            takes = ", ".join(inspect.signature(made).parameters)
            way_out = f"define module(self, features), which returns {made.__name__}({takes})"
            raise ConfigError(
                [f"module: {made.__name__}(): {error}; {way_out}"], _name(type(self))
            ) from error
        return made()  # type: ignore[no-any-return]

    def arguments(self, features: FittedFeatures) -> Callable[[Batch], tuple[Tensor, ...]]:
        """Return what makes the module's arguments of a batch; refuse what does not fit the features."""
        given = (self.inputs,) if isinstance(self.inputs, str) else self.inputs
        inputs = default_inputs(features) if given is None else tuple(given)
        problems = [inputs] if isinstance(inputs, str) else [*wrong_inputs(inputs, features)]
        if problems := [*problems, *self._wrong_losses(features)]:
            raise ConfigError(problems, _name(type(self)))
        return partial(take_inputs, inputs)

    def loss(self, outputs: Any, target: Any) -> Tensor:
        names = self._losses
        if isinstance(names, str):
            return _loss(names, outputs, target)
        parts = self._parts(outputs)
        weighted = [self.loss_weights.get(t, 1.0) * _loss(names[t], parts[t], target[t], t) for t in names]
        return torch.stack(weighted).sum(0)

    def predict(self, outputs: Any) -> Any:
        names = self._losses
        if isinstance(names, str):
            return self._predict(names, outputs)
        return {target: self._predict(names[target], part) for target, part in self._parts(outputs).items()}

    def metrics(self) -> dict[str, Metric]:
        names = self._losses
        if isinstance(names, str):
            found: dict[str, Metric] = LOSSES[names].metrics(self)
            return found
        return {
            f"{target}_{name}": OfTarget(metric, target)
            for target, loss in names.items()
            for name, metric in LOSSES[loss].metrics(self).items()
        }

    @property
    def _losses(self) -> str | Mapping[str, str]:
        names: Any = getattr(self, "loss_name", None)
        if problems := list(_unknown_losses(names)):
            raise ConfigError(problems, _name(type(self)))
        found: str | Mapping[str, str] = names
        return found

    def _predict(self, name: str, outputs: Tensor) -> Any:
        return LOSSES[name].predict(self, _squeezed(name, outputs))

    def _parts(self, outputs: Any) -> dict[str, Tensor]:
        """The module's output for each target."""
        there = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        if isinstance(there, str) or (set(self._losses) - set(there)):
            raise OutputsUnfit(f"gave {there}", f"there is a loss for each of {', '.join(self._losses)}")
        return {target: outputs[target] for target in self._losses}

    def _wrong_losses(self, features: FittedFeatures) -> Iterator[str]:
        names, kinds = self._losses, {target.name: target.kind for target in features.targets}
        several = not isinstance(names, str)
        if several != (len(kinds) > 1):
            there = ", ".join(kinds) or "none"
            yield f"loss_name: by target where there are several, else one name; the targets are: {there}"
            return
        by_target = names if isinstance(names, Mapping) else dict.fromkeys(kinds, names)
        for target, name in by_target.items():
            if target not in kinds:
                yield f"loss_name: {unknown('target', target, kinds)}"
            elif kinds[target] != (wanted := _kind(name)):
                fitting = ", ".join(loss for loss in LOSSES if _kind(loss) == kinds[target])
                yield (
                    f"loss_name: {name} is for a {wanted} target, `{target}` is {kinds[target]}; "
                    f"for that there are: {fitting}"
                )
        for target in self.loss_weights:
            if target not in by_target or not several:
                yield f"loss_weights: {unknown('loss of a target', target, by_target if several else ())}"


class OfTarget(WrapperMetric):
    """A metric of one of several targets: given dicts by name, it takes what is its target's."""

    def __init__(self, metric: Metric, target: str) -> None:
        super().__init__()
        self.metric, self.target = metric, target

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        return self.metric.higher_is_better

    @property
    def metric_state(self) -> dict[str, Any]:
        return self.metric.metric_state

    def update(self, prediction: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
        self.metric.update(prediction[self.target], target[self.target])

    def compute(self) -> Any:
        return self.metric.compute()

    def reset(self) -> None:
        super().reset()
        self.metric.reset()


class _OfProbability(BinaryClassification):
    """The module gives probabilities already."""

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs


class _OfLogRate(Regression):
    """The module gives the logarithm of what is expected."""

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.exp()


LOSSES: Mapping[str, type[Any]] = {
    "binary_cross_entropy_with_logits": BinaryClassification,
    "binary_cross_entropy": _OfProbability,
    "cross_entropy": MulticlassClassification,
    "nll_loss": MulticlassClassification,  # the softmax of logarithms of probabilities are these
    "mse_loss": Regression,
    "l1_loss": Regression,
    "smooth_l1_loss": Regression,
    "huber_loss": Regression,
    "poisson_nll_loss": _OfLogRate,
}
"""Functions of `torch.nn.functional` by name, with the Task that says what goes with them."""


def _kind(name: str) -> str:
    """The kind of target that a loss is for."""
    kinds = (
        (BinaryClassification, "binary"),
        (MulticlassClassification, "multiclass"),
        (Regression, "regression"),
    )
    return next(kind for task, kind in kinds if issubclass(LOSSES[name], task))


def _loss(name: str, outputs: Tensor, target: Tensor, which: str = "") -> Tensor:
    """The loss of each row, [rows]; its mean where a row has several."""
    outputs = _squeezed(name, outputs)
    has_classes = _kind(name) == "multiclass"  # [rows, classes, ...] for a target of [rows, ...]
    shape = outputs.shape[:1] + outputs.shape[2:] if has_classes and outputs.dim() > 1 else outputs.shape
    if shape != target.shape or (has_classes and outputs.dim() < 2):  # torch would spread one over the other
        wanted = "[rows, classes]" if has_classes else "[rows]"
        given = f"gave shape {tuple(outputs.shape)}" + (f" for `{which}`" if which else "")
        raise OutputsUnfit(given, f"{name} needs {wanted} for a target of shape {tuple(target.shape)}")
    losses: Tensor = getattr(functional, name)(outputs, target, reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def _squeezed(name: str, outputs: Tensor) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise OutputsUnfit(f"gave {type(outputs).__name__}", f"{name} needs a tensor")
    is_column = outputs.dim() > 1 and outputs.shape[-1] == 1 and _kind(name) != "multiclass"
    return outputs.squeeze(-1) if is_column else outputs


def _unknown_losses(given: object) -> Iterator[str]:
    if given is None or not given:
        yield f"loss_name is missing; there are: {', '.join(LOSSES)}"
    for name in given.values() if isinstance(given, Mapping) else [given] if given else []:
        if name not in LOSSES:
            way_out = "to compute another, override loss; predict and metrics go by the name"
            yield f"loss_name: {unknown('loss', str(name), LOSSES)}; {way_out}"


def _name(task: type) -> str:
    return f"{task.__module__}.{task.__qualname__}"
