"""Every error a user can meet: its text is built here from facts, and its class fixes the exit code.

A text says what was given, what is allowed and the way out, in that order.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

EXIT_CONFIG = 2
EXIT_DATA = 3
EXIT_TRAINING = 4
EXIT_INFRASTRUCTURE = 5


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word most like `given`, or None when nothing is close."""
    matches = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.55)
    return matches[0] if matches else None


def first_line(error: object) -> str:
    """What an error says, without the stack or the plan below it."""
    return str(error).strip().partition("\n")[0]


def _table(columns: Sequence[Sequence[str]]) -> str:
    """Text in columns, for a terminal."""
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    lines = ("   ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line}".rstrip() for line in lines)


def bullet_list(lines: Iterable[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)


class SparktrainError(Exception):
    """Root of everything this package raises on purpose; `exit_code` is what a command ends with."""

    exit_code = EXIT_INFRASTRUCTURE
    is_transient = False  # whether another attempt may well succeed
    result: Mapping[str, object] = MappingProxyType({})
    """What the run left behind, for those who read it by machine; set where a run directory exists."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Ranks send errors to one another: made again from the text, not from what it was built of."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[SparktrainError], args: tuple[Any, ...], facts: Mapping[str, Any]) -> SparktrainError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class ConfigError(SparktrainError, ValueError):
    """The configuration can't be used. Holds every problem found, not only the first."""

    exit_code = EXIT_CONFIG

    def __init__(self, problems: Sequence[str], where: str = "the configuration") -> None:
        self.problems = list(problems)
        count = f"{len(self.problems)} error" + ("" if len(self.problems) == 1 else "s")
        super().__init__(f"{count} in {where}:\n{bullet_list(self.problems)}")


class DataError(SparktrainError, ValueError):
    """The data can't be used as declared."""

    exit_code = EXIT_DATA


class SchemaMismatch(DataError):
    """Columns that are missing, unexpected or of another type; lists all of them."""

    def __init__(
        self,
        where: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        retyped: Mapping[str, tuple[str, str]] | None = None,
        way_out: str = "correct the source or the declared features",
    ) -> None:
        lines = []
        for name in missing:
            hint = nearest(name, unexpected)
            lines.append(f"missing column `{name}`" + (f" (there is `{hint}`)" if hint else ""))
        lines += [f"unexpected column `{name}`" for name in unexpected]
        lines += [f"column `{n}` is {given}, expected {want}" for n, (given, want) in (retyped or {}).items()]
        super().__init__(f"The schema of {where} does not fit:\n{bullet_list(lines)}\nWay out: {way_out}.")


class NoRowsLeft(DataError):
    """Nothing is left to train on."""

    def __init__(self, rows_in: int, quarantined: Mapping[str, int], where: str) -> None:
        rules = ", ".join(f"`{rule}`: {count:,}" for rule, count in quarantined.items()) or "no rule fired"
        super().__init__(
            f"No row is left after cleaning: {rows_in:,} rows came in, quarantined by rule: {rules}. "
            f"At least one row must pass every rule. Look at the rows in {where}, then relax the rule "
            "or fix the source."
        )


class TooManyQuarantined(DataError):
    """More rows broke a rule than the configuration tolerates."""

    def __init__(
        self, rows_in: int, quarantined: Mapping[str, int], total: int, limit: float, where: str
    ) -> None:
        rules = ", ".join(f"`{rule}`: {count:,}" for rule, count in quarantined.items())
        super().__init__(
            f"{total:,} of {rows_in:,} rows ({total / max(rows_in, 1):.2%}) were quarantined ({rules}); "
            f"prepare.max_quarantined_fraction allows {limit:.2%}. "
            f"Look at the rows in {where}, then fix the source or raise the limit."
        )


class FeaturesInvalid(DataError):
    """Declared features that can't be used together, or with this source; holds every problem found."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(
            f"The declared features can't be used:\n{bullet_list(problems)}\n"
            "Declare each column once, under a name of its own, and the target not among the features."
        )


class ValuesRefused(DataError):
    """Values that a feature was declared not to take, or can't take.

    `columns` says what and how many, by raw column, such as "12 nulls".
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = dict(columns)
        lines = [f"column `{name}`: {what}" for name, what in self.columns.items()]
        super().__init__(
            f"These values are refused:\n{bullet_list(lines)}\n"
            "Let the feature take them where it can (fill=, nan=, infinity=), quarantine these rows by a "
            "rule, or fix the source."
        )


class TooManyClasses(DataError):
    """A multiclass target with more values than any model has outputs."""

    def __init__(self, target: str, classes: int, limit: int) -> None:
        super().__init__(
            f"The target `{target}` has {classes:,} classes, a multiclass target may have {limit:,}. Merge "
            "the rare ones in the source, or quarantine their rows by a rule."
        )


class TargetUnusable(DataError):
    """A column that was named as the target, and of which nothing can be learnt."""

    def __init__(self, target: str, problem: str, way_out: str) -> None:
        super().__init__(f"`{target}` can't be the target: {problem}. Way out: {way_out}.")


class RunUnknown(SparktrainError, ValueError):
    """No run of this name, or several."""

    exit_code = EXIT_CONFIG

    def __init__(self, name: str, where: str, known: Sequence[str]) -> None:
        many = [run for run in known if run.startswith(name)]
        hint = nearest(name, known)
        there = ", ".join((many or known)[:5]) + (", …" if len(many or known) > 5 else "")
        problem = f"{len(many)} runs begin with {name}" if many else f"There is no run {name} in {where}"
        super().__init__(
            f"{problem}."
            + (f" Did you mean {hint}?" if hint and not many else "")
            + (f" There are: {there}." if there else " Nothing was trained there: give another --root.")
            + " Give a run's name or as much of its beginning as is its own; `sparktrain runs` lists them."
        )


class PipelineExists(SparktrainError, ValueError):
    """A new pipeline would lie where something is already."""

    exit_code = EXIT_CONFIG

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(
            f"There is something already, and nothing is overwritten:\n{bullet_list(paths)}\n"
            "Give the pipeline another name, write it into another folder (--into), or remove these."
        )


class SourceUnreadable(DataError):
    """Something that was given as a source of rows, and is no table that can be read."""

    def __init__(self, source: str, problem: str, way_out: str) -> None:
        super().__init__(f"{source} can't be read as rows: {problem}. Way out: {way_out}.")


class NotOneTarget(DataError):
    """Code for one target met features with several, or with none."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(
            f"There are {len(names)} targets ({', '.join(names) or 'none'}), `features.target` is for just "
            "one. Use `features.targets`, or prepare the dataset with one target."
        )


class TokenizerUnusable(DataError):
    """A declared tokenizer that can't be imported or gives no token ids."""

    def __init__(self, feature: str, tokenizer: str, reason: str) -> None:
        super().__init__(
            f"The tokenizer {tokenizer} of feature `{feature}` can't be used: {reason}. It must be "
            '"module:function", importable wherever features are applied, and turn a text into a sequence of '
            "integers."
        )


class RulesInvalid(DataError):
    """Cleaning rules that are no conditions over the source's columns."""

    def __init__(self, problems: Sequence[str], columns: Sequence[str] = ()) -> None:
        super().__init__(
            f"These cleaning rules can't be evaluated:\n{bullet_list(problems)}\n"
            "A rule has a name of its own and is a condition on one row, such as Rule('sold', 'amount > 0')."
            + (f" Columns there are: {', '.join(columns)}." if columns else "")
        )


class CastsInvalid(DataError):
    """Casts that no value of a column could survive."""

    def __init__(self, problems: Sequence[str], columns: Sequence[str]) -> None:
        super().__init__(
            f"These columns can't be cast:\n{bullet_list(problems)}\n"
            "Give a column's name and a SQL type, such as {'amount': 'double'}. "
            f"Columns there are: {', '.join(columns)}."
        )


class SourceMissing(DataError):
    """Nothing to read where the source should be."""

    def __init__(self, path: str, kind: str = "CSV") -> None:
        super().__init__(f"There is no file at {path}. Give a {kind} file, a directory of them or a glob.")


class CellsUnreadable(DataError):
    """A column of encoded arrays, as Petastorm writes them, that can't be decoded."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(
            f"The column `{column}` can't be decoded: {problem}. Its values must be numpy's files of "
            "numbers, all of one dtype and, unless they have one dimension, of one shape. Leave the column "
            "out (columns=), or write it again."
        )


class ColumnsReordered(DataError):
    """A file that has the declared columns in another order."""

    def __init__(self, file: str, given: Sequence[str], expected: Sequence[str]) -> None:
        super().__init__(
            f"{file} has the columns in the order {', '.join(given)}; the schema says {', '.join(expected)}. "
            "Reorder one of them."
        )


class SplitEmpty(DataError):
    """So few rows that a split got none."""

    def __init__(self, rows: int, splits: Sequence[str]) -> None:
        self.problem = f"{rows:,} rows are too few: no row fell into the split {', '.join(splits)}"
        super().__init__(
            f"{self.problem}. Give more rows, or "
            "set prepare.split.validation and prepare.split.test to what you need (0 for none; by time: move "
            "prepare.split.validation_from and test_from)."
        )


class ValueTooLarge(DataError):
    """Numbers whose normalized value would be infinite."""

    def __init__(self, columns: Mapping[str, float], limit: float, normalized_limit: float) -> None:
        given = ", ".join(f"`{name}` holds ±{value:g}" for name, value in columns.items())
        super().__init__(
            f"Numbers are too large: {given}. They must stay within ±{limit:g}, and within "
            f"±{normalized_limit:.3g} once they are normalized to float32. Quarantine such rows by a rule, "
            "or fix the source."
        )


class DatasetInvalid(DataError):
    """A dataset directory that is not what its manifest says."""

    def __init__(self, path: str, problem: str | Sequence[str], way_out: str = "prepare it again") -> None:
        problems = [problem] if isinstance(problem, str) else problem
        listed = f"\n{bullet_list(problems)}\n" if len(problems) > 1 else f" {problems[0]}. "
        super().__init__(f"The dataset at {path} can't be used:{listed}Way out: {way_out}.")


class StoreFailed(SparktrainError):
    """An object store refused to give or take something, or did not answer in time."""

    is_transient = True

    def __init__(
        self, what: str, reason: str, tries: int | None, seconds: float, writing: bool = False
    ) -> None:
        self.tries = tries
        tried = f"tried {tries} times in {seconds:.0f} s" if tries else f"given up after {seconds:.0f} s"
        way_out = "look whether the store is reachable and not overloaded, then start again"
        if tries == 1:
            tried = "tried once: this does not pass"
            way_out = (
                "give the store what it asks for: credentials come from its standard environment variables "
                "(S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), and must allow "
                f"{'writing to' if writing else 'reading'} this bucket"
            )
        did = "take" if writing else "give"
        super().__init__(f"The object store did not {did} {what}: {reason} ({tried}). Way out: {way_out}.")


class StoreUriInvalid(SparktrainError, ValueError):
    """The URI of an object store that can't be understood."""

    exit_code = EXIT_CONFIG

    def __init__(self, uri: str, problem: str) -> None:
        super().__init__(
            f"{uri} can't be used: {problem}. Give a URI that pyarrow.fs understands, such as "
            "s3://bucket/folder?region=eu-west-1 or "
            "s3://bucket/folder?endpoint_override=host:9000&scheme=http."
        )


class NotLocal(SparktrainError, ValueError):
    """Something that works on plain directories was given one of an object store."""

    exit_code = EXIT_CONFIG

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            f"{what} needs a directory of a file system, and {path} lies in an object store. Copy it, for "
            "example by pyarrow.fs.copy_files(uri, directory), and open_dataset(directory)."
        )


class DatasetChanged(DataError):
    """A part that became another file while a process was reading the dataset."""

    def __init__(self, path: str, part: str) -> None:
        super().__init__(
            f"The dataset at {path} changed under the run: {part} is not the file that was read before. "
            "Way out: a dataset is never written to after its preparation; put the old file back and resume, "
            "or prepare into a directory of its own and start a new run."
        )


class StorageUnwritable(SparktrainError):
    """A directory that this run must write to, and can't."""

    exit_code = EXIT_CONFIG

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"Can't write to {path}: {reason}. Everything a run writes lies under storage.root: "
            "point it to a directory that you may write to, e.g. storage.root=/tmp/sparktrain."
        )


class NotEnoughSlots(SparktrainError, ValueError):
    """A gang needs all its slots at once, and the cluster does not have that many."""

    exit_code = EXIT_CONFIG

    def __init__(self, needed: int, available: int, what: str = "slots", way_out: str | None = None) -> None:
        super().__init__(
            f"The gang needs {needed} {what}, the cluster has {available}. All ranks must start together. "
            + (way_out or f"Set train.ranks to {max(available, 1)} or less, or give Spark more cores.")
        )


class JavaMissing(SparktrainError):
    """Spark can't start without a Java that it supports."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"Spark needs Java 17 or newer, found {found}. Install a JDK 17 (or newer) and put it on "
            "PATH or in JAVA_HOME."
        )


class RankFailed(SparktrainError, RuntimeError):
    """A rank raised: the culprit's place and the user's own lines first, logs last."""

    exit_code = EXIT_TRAINING

    def __init__(
        self,
        rank: int,
        host: str,
        message: str,
        step: int | None = None,
        device: str | None = None,
        user_lines: Sequence[str] = (),
        logs: Sequence[str] = (),
    ) -> None:
        self.rank, self.host, self.step, self.message = rank, host, step, message
        at = f"rank {rank} on {host}" + (f" ({device})" if device else "")
        at += f" at step {step}" if step is not None else ""
        text = f"{at} failed: {message}"
        if user_lines:
            text += "\n" + "\n".join(user_lines)
        if logs:
            text += "\nFull logs:\n" + bullet_list(logs)
        super().__init__(text)


class RankLost(SparktrainError, RuntimeError):
    """A rank vanished without an error of its own (killed, out of memory, executor lost)."""

    exit_code = EXIT_INFRASTRUCTURE
    is_transient = True

    def __init__(
        self, ranks: Sequence[int], detail: str, logs: Sequence[str] = (), is_known: bool = False
    ) -> None:
        who = ", ".join(map(str, ranks)) or "unknown"
        text = f"The gang was lost: rank {who} ended without an error of its own ({detail}). "
        if not is_known:
            text += "Usual causes: killed by the system for memory, an executor lost, a node gone. "
        text += "A training continues from its last checkpoint with resume=true."
        super().__init__(text + ("\nFull logs:\n" + bullet_list(logs) if logs else ""))


class GangStalled(SparktrainError, RuntimeError):
    """No rank came forward for too long: who seems to hang, and where all of them were."""

    exit_code = EXIT_INFRASTRUCTURE
    is_transient = True

    def __init__(self, seconds: float, step: int | None, hanging: Sequence[str], logs: Sequence[str]) -> None:
        at = f" (it was at step {step})" if step is not None else ""
        who = "; ".join(hanging) or "who hangs could not be told apart"
        super().__init__(
            f"The gang hangs: no rank came forward for {seconds:g} s{at}: {who}. If a step or a save may "
            "take that long, raise train.stall_timeout_seconds.\nStack dumps and logs:\n" + bullet_list(logs)
        )


class GangNotStarted(SparktrainError, RuntimeError):
    """Spark did not start all ranks in time: the slots are there, but other work holds them."""

    exit_code = EXIT_INFRASTRUCTURE

    def __init__(self, size: int, started: int, seconds: float) -> None:
        super().__init__(
            f"Spark started {started} of {size} ranks within {seconds:g} s. Other jobs of this application, "
            "or another gang, hold the slots that are missing, or executors are gone; let them end first, or "
            "raise start_timeout_seconds."
        )


class ExecutorUnfit(SparktrainError, RuntimeError):
    """Spark's Python on an executor can't run a rank at all."""

    exit_code = EXIT_CONFIG

    def __init__(self, problem: str, log: str) -> None:
        super().__init__(
            f"An executor's Python can't run the ranks: {problem}. Way out: give every executor the driver's "
            "environment (the same image or archive), and point PYSPARK_PYTHON to its Python; `sparktrain "
            f"doctor` shows what differs. The whole stack is in {log}"
        )


class ValueUnreadable(SparktrainError, RuntimeError):
    """What a rank returned can't be unpickled on the driver."""

    exit_code = EXIT_TRAINING

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(
            f"What rank {rank} returned can't be read on the driver ({reason}). Way out: return plain "
            "values, tensors or arrays, or install here what their classes are defined in."
        )


class RunUnderWay(SparktrainError, RuntimeError):
    """Another process of this host trains, or replays, the run that is to be resumed."""

    exit_code = EXIT_CONFIG

    def __init__(self, run: str) -> None:
        super().__init__(
            f"The run {run} is under way in another process. Wait until it has ended, or stop it; without "
            "resume=true a new run is started."
        )


class RestartsExhausted(SparktrainError, RuntimeError):
    """The gang failed again and again without coming further."""

    exit_code = EXIT_INFRASTRUCTURE

    def __init__(self, attempts: int, step: int, last: str) -> None:
        super().__init__(
            f"{attempts} attempts in a row came no further than the checkpoint of step {step}; giving up. "
            "When the cause is gone, resume=true continues from there; train.max_restarts allows more. "
            f"The last attempt: {last}"
        )


class RankEnded(SparktrainError, RuntimeError):
    """A rank's process gave no answer; people see what the driver makes of it, a RankFailed or RankLost."""

    exit_code = EXIT_INFRASTRUCTURE

    def __init__(self, rank: int, how: str, log: str) -> None:
        super().__init__(f"Rank {rank} gave no answer: {how}. Its log is {log}")


class SparkFailed(SparktrainError, RuntimeError):
    """Spark itself failed; the message is its first line, the whole stack lies in a file."""

    def __init__(
        self, what: str, first_line: str, log: str | None, exit_code: int = EXIT_INFRASTRUCTURE
    ) -> None:
        self.exit_code = exit_code
        super().__init__(f"{what}: {first_line}" + (f"\nThe whole stack is in {log}" if log else ""))


class PipelineFailed(SparktrainError, RuntimeError):
    """The pipeline's own code raised on the driver: what it said, and its own lines."""

    def __init__(self, what: str, error: BaseException, user_lines: Sequence[str], exit_code: int) -> None:
        self.exit_code = exit_code
        text = f"{what} failed: {type(error).__name__}: {error}"
        super().__init__("\n".join([text, *user_lines]))


class TrackingUnavailable(SparktrainError, RuntimeError):
    """The MLflow server does not answer."""

    def __init__(self, uri: str, reason: str, way_out: str | None = None) -> None:
        self.problem = f"MLflow at {uri} can't be used: {reason}"
        way_out = way_out or (
            "Start the server, correct tracking.uri (or MLFLOW_TRACKING_URI), leave both empty to track into "
            "a SQLite file under storage.root, or set tracking.required=false to train without it and "
            "deliver later"
        )
        super().__init__(f"{self.problem}. {way_out}.")


class NotPublished(SparktrainError, RuntimeError):
    """The training is done and its outcome kept, but MLflow does not have all of it."""

    def __init__(self, problem: str, best: str, command: str) -> None:
        super().__init__(
            f"The training is finished, its model is not registered: {problem}. Nothing is lost: the weights "
            f"are in {best}. Deliver what MLflow lacks and register the model with:\n  {command}"
        )


class ReplayRefused(SparktrainError, ValueError):
    """A directory whose run can't be replayed, or whose model can't be registered now."""

    exit_code = EXIT_CONFIG

    def __init__(self, path: str, problem: str, way_out: str, *, what: str = "replayed") -> None:
        super().__init__(f"{path} can't be {what}: {problem}. Way out: {way_out}.")


class CheckpointInvalid(SparktrainError, RuntimeError):
    """A checkpoint whose files are not what its manifest says."""

    exit_code = EXIT_TRAINING

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"The checkpoint {path} can't be used: {problem}.")


class CheckpointOutdated(SparktrainError, RuntimeError):
    """A checkpoint of an earlier version's format."""

    exit_code = EXIT_CONFIG

    def __init__(self, path: str, found: object, known: str) -> None:
        super().__init__(
            f"The checkpoint {path} has the format {found!r}; this version of sparktrain reads {known!r} "
            "only. Finish the run with the version that began it, or start a new one with resume=false."
        )


class AttemptSuperseded(SparktrainError, RuntimeError):
    """A leftover of an earlier attempt, which must not commit anything any more."""

    def __init__(self, path: str, attempt: int, latest: int) -> None:
        super().__init__(
            f"Attempt {attempt} of this run is over: attempt {latest} has begun. The checkpoint {path} was "
            "not committed. Nothing is lost: the later attempt goes on from what was committed before it."
        )


class CheckpointNotWritten(SparktrainError, RuntimeError):
    """The storage did not take a checkpoint, of at least one rank."""

    def __init__(self, path: str, reasons: Mapping[int, str], is_transient: bool = False) -> None:
        self.is_transient = is_transient
        lines = [f"rank {rank}: {reason}" for rank, reason in reasons.items()]
        super().__init__(
            f"The checkpoint {path} could not be written:\n{bullet_list(lines)}\n"
            "It is not there; those before it are kept. Make room, name another place as "
            "storage.checkpoints, or keep fewer with train.keep_checkpoints. "
            "With train.on_checkpoint_error=warn training goes on without."
        )


class ResumeRefused(SparktrainError, ValueError):
    """The run to resume meant something else than the configuration asks for now."""

    exit_code = EXIT_CONFIG

    def __init__(self, run_dir: str, differences: Mapping[str, tuple[object, object]]) -> None:
        lines = [f"{key}: the run has {old!r}, now {new!r}" for key, (old, new) in differences.items()]
        root, name = run_dir.rsplit("/", 2)[0], run_dir.rpartition("/")[2]
        of_dataset = (
            f" `sparktrain runs resume {name} --root {shlex.quote(root)}` continues it on its own dataset."
            f" resume=true would pick it each time, until it has finished or {run_dir} is removed."
        )
        super().__init__(
            f"{run_dir} can't be resumed with this configuration; these change what the run means:\n"
            f"{bullet_list(lines)}\nSet them back, or start a new run with resume=false."
            + (of_dataset if "dataset" in differences else "")
        )


class StepFailed(SparktrainError):
    """Carries the step at which the exception that is its cause was raised; never shown itself."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"step {step}")


class NonFiniteLoss(SparktrainError, ValueError):
    """The loss or its gradient is NaN or infinite, so the weights are lost; no checkpoint was taken since."""

    exit_code = EXIT_TRAINING

    def __init__(self, step: int, value: float, what: str = "loss") -> None:
        super().__init__(
            f"The {what} became {value} by step {step}. It must be finite. The last checkpoint is sound: "
            "lower train.learning_rate or train.clip_gradient_norm, or look at the loss for a division "
            "by zero, or a logarithm or a square root of it. If a few steps of such kind are to be left out, "
            "set train.on_nonfinite=skip."
        )


class LossNotByRow(SparktrainError, ValueError):
    """A Task's loss is of another shape than the rows'."""

    exit_code = EXIT_TRAINING

    def __init__(self, task: str, shape: Sequence[int], rows: int) -> None:
        super().__init__(
            f"The loss of {task} gave shape {tuple(shape)} for {rows} rows. It must give the loss of each "
            'row, shape [rows]: leave the mean to training (reduction="none"), and see that the model\'s '
            "outputs have the target's shape (squeeze(1) drops a last 1)."
        )


class OutputsUnfit(SparktrainError, ValueError):
    """A module's outputs don't fit the loss that was named for them."""

    exit_code = EXIT_TRAINING

    def __init__(self, given: str, needed: str) -> None:
        super().__init__(
            f"The module {given}; {needed}. Change what the module returns, or write loss and predict of the "
            "Task yourself."
        )


class LightningUnsupported(SparktrainError, ValueError):
    """A LightningModule relies on Lightning's Trainer, which is not there."""

    exit_code = EXIT_CONFIG

    def __init__(self, module: str, what: str, way_out: str) -> None:
        super().__init__(f"{module} {what}; LightningTask trains without Lightning's Trainer. {way_out}.")


class BlocksUnknown(SparktrainError, ValueError):
    """`train.blocks` names classes that no module of the model has."""

    exit_code = EXIT_CONFIG

    def __init__(self, missing: Sequence[str], classes: Mapping[str, int]) -> None:
        there = ", ".join(f"{name} ({count})" for name, count in sorted(classes.items()))
        super().__init__(
            f"train.blocks names {', '.join(missing)}, and the model has no module of such a class. It has: "
            f"{there or 'no module within'}. Give the classes of its repeated blocks."
        )


class TorchTooOld(SparktrainError, RuntimeError):
    """This torch can't do what the configuration asks for."""

    exit_code = EXIT_CONFIG

    def __init__(self, given: str, found: str, way_out: str) -> None:
        super().__init__(f"{given}: torch {found}, which is installed, can't do that. Way out: {way_out}.")


class StepMisused(SparktrainError, ValueError):
    """A Task's own `train_step` asks for what a step can't do."""

    exit_code = EXIT_TRAINING

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(f"The Task's train_step {what}; {way_out}.")


class ParametersUnused(SparktrainError, ValueError):
    """Parameters that no loss reaches, under a strategy that waits for their gradients."""

    exit_code = EXIT_TRAINING

    def __init__(self, names: Sequence[str]) -> None:
        told = f": {', '.join(names)}" if names else ""
        super().__init__(
            f"The loss does not reach all parameters of the model{told}. Under ddp and local_sgd "
            "each must get a gradient at each step. Leave out what is not used, freeze it "
            "(requires_grad_(False)), or set train.strategy=fsdp."
        )


class MetricWithoutDirection(SparktrainError, ValueError):
    """`best_metric` is a metric that does not say whether more is better."""

    exit_code = EXIT_CONFIG

    def __init__(self, name: str) -> None:
        super().__init__(
            f"train.best_metric is {name}, a metric that does not say whether more of it is better. Give its "
            "class the attribute higher_is_better (True or False), or choose another metric."
        )


class RendezvousTimeout(SparktrainError, TimeoutError):
    """The ranks did not all meet in time."""

    is_transient = True

    def __init__(self, rank: int, size: int, seconds: float, detail: str) -> None:
        super().__init__(
            f"Rank {rank} waited {seconds:g} s for the gang of {size} to meet ({detail}). Every rank "
            "must see the run "
            "directory and reach rank 0's host. Check the network between executors, or raise "
            "train.start_timeout_seconds."
        )


class HostIsLoopback(SparktrainError, OSError):
    """Rank 0 would wait for the others where only its own host can come."""

    def __init__(self, name: str, address: str) -> None:
        super().__init__(
            f"The host {name} resolves its own name to {address}, its loopback device, which ranks on other "
            "hosts can't reach. Give the name its address on the network in /etc/hosts there, or start "
            "Spark's worker on that host with SPARK_LOCAL_HOSTNAME set to that address."
        )


class DeviceUnknown(SparktrainError, ValueError):
    """Spark granted a GPU that CUDA can't be asked for by that name."""

    exit_code = EXIT_CONFIG

    def __init__(self, address: str, visible: str | None) -> None:
        super().__init__(
            f"Spark granted the GPU {address!r}; CUDA_VISIBLE_DEVICES of the worker is {visible!r}. CUDA "
            "knows a GPU by its number, or by a name that is listed there. List the MIG slices' names in "
            "spark.executorEnv.CUDA_VISIBLE_DEVICES, or let the discovery script give numbers."
        )


class GpuUnusable(SparktrainError, RuntimeError):
    """Spark granted a task a GPU that torch can't use in that process."""

    def __init__(self, address: str, num_seen: int, torch_version: str) -> None:
        super().__init__(
            f"Spark granted this task the GPU {address!r}; torch {torch_version} sees {num_seen} there. "
            "Install a build of torch with CUDA on the executors (and their driver), or score without "
            "spark.task.resource.gpu.amount."
        )


class AttemptExists(SparktrainError, ValueError):
    """A gang's directory that was used before."""

    exit_code = EXIT_CONFIG

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} exists already. A gang's directory belongs to one attempt, because leftover files "
            "would be taken for its own. Give a new directory, or none for a temporary one."
        )


class VersionsDiffer(SparktrainError, RuntimeError):
    """Driver and ranks run on versions that must not train together; `environments` holds what differs.

    Its text has a table: a row for each package, a column for each distinct environment.
    """

    exit_code = EXIT_CONFIG

    def __init__(self, environments: Mapping[str, Mapping[str, str]]) -> None:
        self.environments = {who: dict(versions) for who, versions in environments.items()}
        names = list(dict.fromkeys(name for versions in environments.values() for name in versions))
        columns = [["", *names], *([who, *versions.values()] for who, versions in environments.items())]
        super().__init__(
            f"These versions differ, and must not:\n{_table(columns)}\n"
            "All that train together need the same. Way out: give every executor the driver's environment "
            "(the same image or archive, by spark.archives for instance), and point PYSPARK_PYTHON to its "
            "Python."
        )


class NotABarrierStage(SparktrainError, RuntimeError):
    """Spark runs the ranks as ordinary tasks."""

    def __init__(self, expected: int, given: int) -> None:
        super().__init__(
            f"Spark started {given} barrier tasks, the gang needs {expected}: a plugin or an optimizer "
            "rule has dropped "
            "barrier mode. Remove the plugin (spark.plugins, spark.sql.extensions) for training sessions."
        )


class NotPicklable(ConfigError):
    """What shall run in the ranks can't be sent there."""

    def __init__(self, names: Sequence[str], reason: str) -> None:
        super().__init__(
            [
                f"can't be pickled: {', '.join(names) or 'the function'} ({reason}). Ranks are other "
                "processes: give them "
                "plain values, and create locks, connections and models inside the function or in "
                "build_model()"
            ],
            "what the gang shall run",
        )


class DatasetsDiffer(DataError):
    """Datasets that can't be mixed, because a number would not mean the same in each."""

    def __init__(self, first: str, other: str, what: str) -> None:
        super().__init__(
            f"The datasets `{first}` and `{other}` can't be mixed: their {what} differ, so that the same "
            f"number would mean different things in one batch. Way out: prepare `{other}` again in the same "
            f"layout with fitted=open_dataset(…).features of `{first}`."
        )


class TooFewRows(DataError):
    """A split that has not one step."""

    def __init__(self, path: str, split: str, num_rows: int, global_batch_size: int) -> None:
        way_out = (
            f"Set global_batch_size to {num_rows} or less, or use tail='mask', which fills the last step up."
            if num_rows
            else "Prepare it with rows for this split, or leave the split out."
        )
        super().__init__(
            f"Split `{split}` of the dataset at {path} has {num_rows:,} rows, global_batch_size is "
            f"{global_batch_size:,}: an epoch would have no step. {way_out}"
        )


class NameUnknown(DataError):
    """A split or a column that a dataset does not have."""

    def __init__(self, kind: str, given: str, allowed: Iterable[str], where: str) -> None:
        names = list(allowed)
        hint = nearest(given, names)
        super().__init__(
            f"There is no {kind} `{given}` in {where}; there are: {', '.join(names) or 'none'}."
            + (f" Did you mean `{hint}`?" if hint else "")
        )


class StreamStateMismatch(DataError):
    """A state that belongs to other batches than this stream's."""

    def __init__(self, differences: Mapping[str, tuple[object, object]]) -> None:
        lines = [
            f"{key}: the state has {old!r}, the stream {new!r}" for key, (old, new) in differences.items()
        ]
        super().__init__(
            "The stream can't continue from this state, because rows would be lost or repeated:\n"
            f"{bullet_list(lines)}\nSet these back to what the state has, or start from the beginning "
            "without it."
        )


class PetastormCannotSeek(DataError):
    """A place within an epoch was asked for, and Petastorm begins each epoch at its first row."""

    def __init__(self, epoch: object, step: object) -> None:
        super().__init__(
            f"Petastorm can't go to step {step} of epoch {epoch}: its readers begin an epoch at the first "
            "row group and know no other place. Start from an epoch's end (leave "
            "train.checkpoint_every_steps empty), or start the run anew with data.reader=sparktrain, which "
            "goes to any step."
        )


class WorkerProcess(SparktrainError, RuntimeError):
    """A stream in a worker process of a torch `DataLoader`."""

    # torch raises it again from the text alone; where that fails, as here, it keeps the text.
    def __init__(self) -> None:
        super().__init__(
            "The DataLoader has num_workers above 0. The stream reads ahead in threads of its own, and a "
            "worker's copy of it would begin each epoch anew: give num_workers=0 and batch_size=None."
        )


class StreamMoved(SparktrainError, RuntimeError):
    """An iteration that goes on although the stream was moved under it."""

    def __init__(self) -> None:
        super().__init__(
            "This iteration of the stream is over: a newer one was started, or a state was loaded. "
            "One at a time reads a stream. Take batches from the newest `iter(stream)`."
        )


class ModelNotFound(SparktrainError, ValueError):
    """No such model in the registry; names those that there are."""

    exit_code = EXIT_CONFIG

    def __init__(self, given: str, registry: str, known: Mapping[str, Sequence[str]]) -> None:
        lines = [f"{name}: {', '.join(references) or 'no version'}" for name, references in known.items()]
        hint = nearest(given.removeprefix("models:/").partition("@")[0].partition("/")[0], known)
        super().__init__(
            f"There is no model {given} in {registry}."
            + (f" Registered models:\n{bullet_list(lines)}" if lines else " No model is registered there.")
            + (f"\nDid you mean `{hint}`?" if hint and hint not in given else "")
            + "\nGive models:/<name>@<alias> or models:/<name>/<version>; training registers a model."
        )


class ModelUnusable(SparktrainError, ValueError):
    """A model that is there and can't be used: of another kind, or damaged."""

    exit_code = EXIT_CONFIG

    def __init__(self, model: str, problem: str, way_out: str) -> None:
        super().__init__(f"The model {model} can't be used: {problem}. Way out: {way_out}.")


class OutputExists(SparktrainError, ValueError):
    """Something is already where the result should go."""

    exit_code = EXIT_CONFIG

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} exists already, and nothing is overwritten. Give another score.output, remove it, "
            "or leave "
            "score.output empty for a new folder under storage.root."
        )


class LabelUnfit(DataError):
    """The label of an estimator is not what it can learn."""

    def __init__(self, column: str, problem: str, way_out: str) -> None:
        super().__init__(f"The label `{column}` can't be learnt: {problem}. Way out: {way_out}.")


class WeightsUnfit(DataError):
    """Weights of an estimator's rows that can't weigh anything."""

    def __init__(self, column: str, count: int, num_rows: int) -> None:
        super().__init__(
            f"The weight `{column}` is null, NaN, infinite or negative in {count:,} of {num_rows:,} rows; "
            f'it is 0 or more. Way out: df.where("{column} >= 0") leaves them out; 0 weighs nothing.'
        )


class RowsInvalid(DataError):
    """Rows that an estimator or its model was told not to take."""

    def __init__(self, what: str, columns: Sequence[str]) -> None:
        super().__init__(
            f"{what}, in one of: {', '.join(columns)}; handleInvalid is error. Way out: set handleInvalid to "
            "skip, which leaves such rows out, or to keep, which takes nulls and NaN as values of their own; "
            "or fill them in."
        )
