"""The configuration: one model per section, every problem reported at once, in well under a second.

Imports neither Spark nor torch nor MLflow, so that a typing error costs no start-up.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from sparktrain.errors import ConfigError, nearest
from sparktrain.object_store import check_uri, shown
from sparktrain.splitting import SplitConfig

Reader = Literal["sparktrain", "petastorm"]

_PETASTORMS_PYARROW = 14


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class StorageConfig(Section):
    """Where everything that a run writes goes."""

    root: Path = Field(Path("./out"), description="directory that the driver and every executor see")
    checkpoints: str | None = Field(
        None,
        description="path or URI that all see, with a folder for each run; empty: in the run's directory",
    )

    @field_validator("root", mode="before")
    @classmethod
    def _is_path(cls, root: object) -> object:
        if isinstance(root, str) and re.match(r"^[a-z][a-z0-9+.-]+://", root):
            raise ValueError(
                "object stores are not supported yet; give a directory that driver and executors share "
                "(a mount will do)"
            )
        return root

    @field_validator("checkpoints")
    @classmethod
    def _shows_no_secret(cls, checkpoints: str | None) -> str | None:
        if checkpoints is not None and "://" in checkpoints:
            check_uri(checkpoints)
            if "***" in (told := shown(checkpoints)):
                raise ValueError(
                    f"{told} holds what may be a secret, and would be kept with the run; give credentials by "
                    "the store's environment variables (S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
                )
        return checkpoints


class SparkConfig(Section):
    """How to reach Spark. Under spark-submit its own settings win."""

    master: str = Field(
        "local[2]",
        description="ignored under spark-submit, which brings its own; none: train without Spark, in this "
        "process or in those of torchrun",
    )
    app_name: str = Field("sparktrain", description="as Spark's own pages show it")
    conf: dict[str, str] = Field(default_factory=dict, description="further Spark properties, as text")

    @field_validator("conf", mode="before")
    @classmethod
    def _as_text(cls, conf: object) -> object:
        if not isinstance(conf, Mapping):
            return conf
        return {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in conf.items()}

    @property
    def is_none(self) -> bool:
        return self.master == "none"

    @property
    def local_slots(self) -> int | None:
        """Slots of a `local[n]` or `local-cluster[e,c,m]` master; None where only the cluster knows."""
        if match := re.fullmatch(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,\s*\d+\s*\]", self.master):
            return int(match[1]) * int(match[2])
        if match := re.fullmatch(r"local(?:\[(\d+)(?:,\d+)?\])?", self.master):
            return int(match[1] or 1)
        return None


class PrepareConfig(Section):
    """How a DataFrame becomes a dataset."""

    source: dict[str, Any] = Field(default_factory=dict, description="arguments of the pipeline's read()")
    split: SplitConfig = Field(default_factory=SplitConfig)
    num_parts: int = Field(4, ge=1, description="Parquet files per split")
    rows_per_row_group: int = Field(4096, ge=1, description="rows that are read at once")
    layout: Literal["columns", "blocks"] = Field(
        "columns", description="blocks: features of one dtype side by side in one binary column"
    )
    compression: Literal["lz4", "zstd", "snappy", "none"] = Field(
        "lz4", description="of Parquet pages; zstd: smaller files, which take longer to read"
    )
    max_quarantined_fraction: float = Field(
        0.1, ge=0.0, le=1.0, description="of the rows; with more, nothing is written and prepare fails"
    )
    seed: int = Field(0, description="of the global shuffle")


class DataConfig(Section):
    """How training reads its dataset."""

    reader: Reader = Field(
        "sparktrain", description="petastorm: by its make_batch_reader; see docs/migration.md"
    )
    num_threads: int = Field(2, ge=1, description="of each rank, that read, decode and assemble")
    memory_bytes: int | None = Field(None, ge=1, description="of each rank's stream; empty: 1 GiB")
    tail: Literal["drop", "repeat", "mask"] = Field(
        "drop",
        description="of an epoch, what is no whole batch: left out, filled up with rows that came already, "
        "or with rows of weight 0",
    )
    on_bad_data: Literal["fail", "mask"] = Field(
        "fail", description="mask: rows that can't be read get weight 0 and are counted"
    )
    verify: Literal["first", "always"] = Field(
        "first", description="when pages are held against their checksums: at their first read, or at each"
    )

    @property
    def stream_options(self) -> dict[str, Any]:
        """Arguments of `Dataset.stream`, for whatever split."""
        return self.model_dump(exclude={"reader", "tail"})

    @property
    def can_mask(self) -> bool:
        """Whether rows of a batch may have weight 0; Petastorm fills up what a rank has no rows for."""
        return "mask" in (self.tail, self.on_bad_data) or self.reader == "petastorm"


class DdpConfig(Section):
    """Of `train.strategy: ddp`."""

    compression: Literal["none", "bf16", "fp16", "powersgd"] = Field(
        "none", description="how gradients travel; bf16 and fp16: half the bytes, powersgd: a few per cent"
    )
    powersgd_rank: int = Field(2, ge=1, description="of the matrices that a gradient is approximated by")
    powersgd_start_step: int = Field(10, ge=2, description="until then gradients travel whole")


class FsdpConfig(Section):
    """Of `train.strategy: fsdp`."""

    reshard_after_forward: bool = Field(
        True, description="false: whole weights stay until the backward pass; more memory, less to send"
    )


class LocalSgdConfig(Section):
    """Of `train.strategy: local_sgd`."""

    average_every_steps: int = Field(8, ge=2, description="between two averages of the ranks' weights")
    start_step: int = Field(0, ge=0, description="until then ranks train together, as ddp does")
    outer_learning_rate: float | None = Field(
        None, gt=0, description="of an optimizer over the averages (DiLoCo takes 0.7); empty: the average"
    )
    outer_momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Nesterov's, of that optimizer")


class TrainConfig(Section):
    """How the gang trains. Sizes that begin with `global_` are per gang, all others per rank."""

    ranks: int = Field(2, ge=1, description="processes that train together; each takes one slot")
    cpus_per_rank: int = Field(1, ge=1, description="threads of torch and Arrow in each rank")
    gpus_per_rank: int = Field(0, ge=0, le=1, description="1: NCCL on CUDA; 0: gloo on the CPU")
    strategy: Literal["single", "ddp", "fsdp", "local_sgd"] = Field(
        "ddp",
        description="ddp: gradients averaged at each step; fsdp: weights and optimizer in parts, one a rank; "
        "local_sgd: weights averaged every few steps; single: one rank",
    )
    ddp: DdpConfig = Field(default_factory=DdpConfig)
    fsdp: FsdpConfig = Field(default_factory=FsdpConfig)
    local_sgd: LocalSgdConfig = Field(default_factory=LocalSgdConfig)
    blocks: list[str] = Field(
        default_factory=list,
        description="classes of the model's repeated modules: fsdp takes each apart for itself, activation "
        "checkpointing computes each again",
    )
    activation_checkpointing: bool = Field(
        False, description="less memory: values between blocks are kept, those within computed twice"
    )
    compile: bool = Field(False, description="by torch.compile; needs a C++ compiler on each host")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the passes; weights and what is added up stay float32"
    )
    deterministic: bool | None = Field(
        None, description="true: refuse operations whose bits may differ next time; empty: on CPUs"
    )
    epochs: int = Field(4, ge=1, description="at most")
    max_steps: int | None = Field(None, ge=1, description="at most; the schedule ends there")
    max_seconds: float | None = Field(
        None, gt=0, description="of training, earlier attempts included; looked at every ten steps"
    )
    evaluate_every_steps: int | None = Field(None, ge=1, description="besides the end of each epoch")
    early_stopping_evaluations: int | None = Field(
        None, ge=1, description="ends after so many in a row without a better best_metric"
    )
    global_batch_size: int = Field(2048, ge=1, description="rows per step over all ranks")
    micro_batch_size: int | None = Field(
        None, ge=1, description="rows of a rank that pass at once, gradients accumulate; empty: all"
    )
    num_lanes: int = Field(
        8, ge=1, description="streams that are mixed into a batch; divides global_batch_size"
    )
    learning_rate: float = Field(2e-3, gt=0, description="the highest, after the warm-up")
    warmup_fraction: float = Field(
        0.1, ge=0.0, le=1.0, description="part of all steps with a rising learning rate"
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="of the learning rate, after the warm-up"
    )
    final_learning_rate_fraction: float = Field(
        0.0, ge=0.0, le=1.0, description="of learning_rate, at the end"
    )
    weight_decay: float = Field(1e-2, ge=0, description="of AdamW")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="evaluate and keep a moving average of the weights; 0.999, say"
    )
    clip_gradient_norm: float | None = Field(
        1.0, gt=0, description="longer gradients are scaled down to it; empty: none is"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="at a NaN or infinite loss or gradient; skip: without that step, ten in a row stop",
    )
    seed: int = Field(0, description="of first weights, dropout and the order of the rows")
    model: dict[str, Any] = Field(default_factory=dict, description="arguments of the pipeline's Task")
    best_metric: str = Field(
        "auroc", description="validation metric that picks the best checkpoint: the Task's, or loss"
    )
    checkpoint_every_steps: int | None = Field(None, ge=1, description="besides the end of each epoch")
    keep_checkpoints: int = Field(3, ge=1, description="the newest ones; the best stays besides")
    async_checkpoints: bool = Field(
        False, description="a step waits for a copy in memory, not for the storage"
    )
    on_checkpoint_error: Literal["fail", "warn"] = Field(
        "fail", description="when the storage does not take one; warn: go on, and keep those before it"
    )
    start_timeout_seconds: float = Field(120, gt=0, description="until every rank has met the others")
    collective_timeout_seconds: float = Field(600, gt=0, description="until a silent peer counts as lost")
    stall_timeout_seconds: float = Field(
        300, gt=0, description="until a gang that does not come forward ends"
    )
    max_restarts: int = Field(
        3, ge=0, description="in a row without a new checkpoint, after ranks or executors were lost"
    )
    restart_delay_seconds: float = Field(
        2, ge=0, description="before the second restart in a row; doubles with each"
    )
    min_ranks: int | None = Field(
        None, ge=1, description="with which a restart goes on if slots were lost; empty: with all"
    )
    allow_plaintext_collectives: bool = Field(
        False, description="let ranks talk unencrypted although Spark encrypts its network"
    )
    reference: Literal["logistic_regression", "task", "none"] = Field(
        "logistic_regression",
        description="fitted on the same rows, to compare with; task: by the Task's own `reference`",
    )
    profile_steps: tuple[int, int] | None = Field(
        None, description="first and last step of which rank 0 records a trace; empty: of none"
    )

    @field_validator("profile_steps")
    @classmethod
    def _is_a_range(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise ValueError(f"{list(steps)} is no range; give first and last step, such as [100, 110]")
        return steps

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.global_batch_size % self.num_lanes:
            fits = max(n for n in range(1, self.num_lanes + 1) if self.global_batch_size % n == 0)
            raise ValueError(
                f"num_lanes is {self.num_lanes}, which does not divide global_batch_size "
                f"{self.global_batch_size}; "
                f"the next smaller that does is {fits}"
            )
        if self.min_ranks is not None and self.min_ranks > self.ranks:
            raise ValueError(f"min_ranks {self.min_ranks} is more than ranks {self.ranks}")
        if self.strategy == "single" and self.ranks > 1:
            raise ValueError(
                f"strategy single is for one rank, ranks is {self.ranks}; set ranks to 1, or strategy to ddp"
            )
        if self.ddp.compression != "none" and self.strategy in ("fsdp", "local_sgd"):
            raise ValueError(
                f"ddp.compression is {self.ddp.compression}, and strategy {self.strategy} has none; set it "
                "to none, or strategy to ddp"
            )
        if self.ddp.compression == "bf16" and self.strategy == "ddp" and not self.gpus_per_rank:
            raise ValueError(
                "ddp.compression bf16 is for NCCL, and gpus_per_rank is 0; set it to fp16, which gloo takes, "
                "or gpus_per_rank to 1"
            )
        if self.precision == "fp16" and self.strategy in ("fsdp", "local_sgd"):
            raise ValueError(
                f"precision fp16 scales losses alike on all ranks, which {self.strategy} can't; set "
                "precision to bf16, which needs no scaling, or strategy to ddp"
            )
        if self.global_batch_size < self.ranks:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is smaller than ranks {self.ranks}: a "
                "rank would have no row"
            )
        return self


class TrackingConfig(Section):
    """The MLflow side of a run."""

    uri: str | None = Field(
        None,
        description="empty: MLFLOW_TRACKING_URI, else SQLite under storage.root; none: no MLflow, and no "
        "registered model",
    )
    experiment: str | None = Field(None, description="empty: the parent run's, else the pipeline's name")
    parent_run_id: str | None = Field(
        None, min_length=1, description="of an MLflow run that this one is to be shown under, of a sweep say"
    )
    registered_model: str | None = Field(None, description="empty: the pipeline's name")
    register_model: bool = Field(True, description="false: the run ends without a registered model")
    system_metrics_seconds: float | None = Field(
        10.0, ge=1.0, description="between two looks at each host's CPU, memory and network; empty: none"
    )
    required: bool = Field(
        True, description="false: training goes on while MLflow is away; `sparktrain replay` delivers later"
    )
    alias: str = Field(
        "champion", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", description="which the registered version gets"
    )

    @field_validator("registered_model")
    @classmethod
    def _is_model_name(cls, name: str | None, given: ValidationInfo) -> str | None:
        parts = [] if name is None else [name]
        # Unity Catalog names its models catalog.schema.name.
        if name is not None and str(given.data.get("uri")).startswith("databricks") and name.count(".") == 2:
            parts = name.split(".")
        if any(not part or re.search(r"[/:.%\"']", part) for part in parts):
            raise ValueError(f"{name!r} can't name a model: MLflow forbids / : . % \" ' and the empty name")
        return name

    @property
    def is_none(self) -> bool:
        return self.uri == "none"


class ScoreConfig(Section):
    """What to score, with which model, and where the predictions go."""

    model: str | None = Field(None, description="empty: the registered model under its alias")
    source: dict[str, Any] = Field(default_factory=dict, description="arguments of the pipeline's read()")
    output: Path | None = Field(None, description="empty: <storage.root>/scores/<pipeline>")


class Config(Section):
    """The whole of a YAML file."""

    pipeline: str = Field(
        description="folder of pipelines/ with data.py and model.py", pattern=r"^[a-z_][a-z0-9_]*$"
    )
    resume: bool | str = Field(
        False,
        description="true: continue the newest run of this pipeline that was not finished; or a run's name",
    )
    storage: StorageConfig = Field(default_factory=StorageConfig)
    spark: SparkConfig = Field(default_factory=SparkConfig)
    prepare: PrepareConfig = Field(default_factory=PrepareConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    score: ScoreConfig = Field(default_factory=ScoreConfig)

    @property
    def model_name(self) -> str:
        return self.tracking.registered_model or self.pipeline

    @property
    def model_uri(self) -> str:
        return self.score.model or f"models:/{self.model_name}@{self.tracking.alias}"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, and check all of it.

    Raises:
        ConfigError: with every problem found.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            [f"{error.strerror}; give the path of a YAML file such as conf/flight_delays.yaml"], str(path)
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"not valid YAML: {' '.join(str(error).split())}"], str(path)) from error
    if not isinstance(tree, dict):
        raise ConfigError([f"the file holds {type(tree).__name__}, not sections with keys"], str(path))
    problems = list(apply_overrides(tree, overrides))
    return parse_config(tree, where=str(path), problems=problems)


def parse_config(
    tree: Mapping[str, Any],
    where: str = "the configuration",
    problems: Sequence[str] = (),
    *,
    has_package: bool = True,
) -> Config:
    """Check a tree of plain values; `problems` found before are reported along with the new ones.

    Args:
        has_package: whether `pipeline` is a folder of pipelines/; else it only names datasets and runs.
    """
    found = list(problems)
    config: Config | None = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found += [_describe(dict(problem)) for problem in error.errors()]
    found += _check_together(tree, has_package)
    if found or config is None:
        raise ConfigError(found, where)
    return config


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> Iterator[str]:
    """Change the tree by `section.key=value`; yields what is wrong with an override."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            yield f"override {override!r}: expected section.key=value, such as train.epochs=2"
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            yield f"override {override!r}: the value is not valid YAML; quote it"
            continue
        node: Any = tree
        *sections, leaf = key.strip().split(".")
        for section in sections:
            if node.get(section) is None:
                node[section] = {}
            node = node[section]
            if not isinstance(node, dict):
                yield f"override {override!r}: {section} is a value, not a section"
                break
        else:
            node[leaf] = value


def _describe(problem: Mapping[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{_hint(location)}"
    if problem["type"] == "missing":
        return f"{key}: missing; give it a value"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key}: {problem['input']!r} given; {message[0].lower()}{message[1:]}"


def _hint(location: Sequence[str]) -> str:
    """Name the nearest key: first among the siblings, then anywhere."""
    *parents, leaf = location
    siblings = [key for key in all_keys() if key.split(".")[:-1] == parents]
    if match := nearest(leaf, [key.rpartition(".")[2] for key in siblings]):
        return f"; did you mean {'.'.join([*parents, match])}?"
    for key in all_keys():
        if key.rpartition(".")[2] == leaf:
            return f"; did you mean {key}?"
    return f"; allowed here: {', '.join(key.rpartition('.')[2] for key in siblings)}"


def all_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every key of the configuration, dotted, sections included."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if section := section_of(field):
            keys += all_keys(section, f"{prefix}{name}.")
    return keys


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a key that is a section of its own."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _check_together(tree: Mapping[str, Any], has_package: bool) -> Iterator[str]:
    """Checks across sections; each reads only what it needs, so that other errors don't hide it."""
    pipeline = tree.get("pipeline")
    if has_package and isinstance(pipeline, str) and re.fullmatch(r"[a-z_][a-z0-9_]*", pipeline):
        yield from _check_pipeline(pipeline)
    yield from _check_reader(tree)
    try:
        spark = SparkConfig.model_validate(tree.get("spark") or {})
        ranks = int((tree.get("train") or {}).get("ranks", TrainConfig().ranks))
    except (ValidationError, TypeError, ValueError, AttributeError):
        return
    # Under spark-submit, and where a platform has its session, that one's master holds, not the file's.
    is_hosted = not {"PYSPARK_GATEWAY_PORT", "DATABRICKS_RUNTIME_VERSION"}.isdisjoint(os.environ)
    slots = None if is_hosted else spark.local_slots
    if slots is not None and ranks > slots:
        yield (
            f"train.ranks: needs {ranks} slots, {spark.master} has {slots}; all ranks must start together: "
            f"set train.ranks={slots} or spark.master=local[{ranks}]"
        )


def _check_reader(tree: Mapping[str, Any]) -> Iterator[str]:
    data, train = tree.get("data"), tree.get("train")
    if not isinstance(data, Mapping) or data.get("reader") != "petastorm":
        return
    if problem := petastorm_problem():
        yield problem
    every = train.get("checkpoint_every_steps") if isinstance(train, Mapping) else None
    if every is not None:
        yield (
            f"train.checkpoint_every_steps: {every} given, and data.reader=petastorm begins every epoch at "
            "its first row group, so that no checkpoint within an epoch could be resumed; leave it empty, or "
            "set data.reader=sparktrain"
        )


def petastorm_problem() -> str | None:
    """What is wrong with the Petastorm of this environment; it is not imported, which takes seconds."""
    way_out = (
        "install the extra in an environment of its own, pip install -c constraints-spark35.txt "
        "'sparktrain[petastorm]', or set data.reader=sparktrain"
    )
    if importlib.util.find_spec("petastorm") is None:
        return f"data.reader: petastorm given, which is not installed; {way_out}"
    pyarrow = metadata.version("pyarrow")
    if int(pyarrow.partition(".")[0]) > _PETASTORMS_PYARROW:
        return (
            f"data.reader: petastorm given, which works with pyarrow {_PETASTORMS_PYARROW} and nothing "
            f"newer; there is {pyarrow}; {way_out}"
        )
    return None


def _check_pipeline(name: str) -> Iterator[str]:
    try:
        package = importlib.util.find_spec("pipelines")
    except (ImportError, ValueError):
        package = None
    if package is None or not package.submodule_search_locations:
        yield (
            "pipeline: no folder pipelines/ is on the Python path; run from the folder that holds it, "
            "or add it to PYTHONPATH"
        )
        return
    roots = [Path(location) for location in package.submodule_search_locations]
    known = sorted({p.parent.name for root in roots for p in root.glob("*/data.py")})
    if name not in known:
        hint = nearest(name, known)
        # The folder is named: one without __init__.py loses against any other `pipelines` on the path.
        yield f"pipeline: there is no {name}/data.py in {', '.join(map(str, roots))}" + (
            f"; did you mean {hint}?" if hint else f"; there are: {', '.join(known) or 'none'}"
        )
