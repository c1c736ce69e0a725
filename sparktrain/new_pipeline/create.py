"""init_pipeline: from a DataFrame or a file to the files of a pipeline that runs as it stands."""

from __future__ import annotations

import dataclasses
import keyword
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from sparktrain.errors import ConfigError, PipelineExists
from sparktrain.features import MALFORMED_COLUMN, PREDICTION, PROBABILITY, SCORE_ERROR
from sparktrain.new_pipeline.configuration import configuration
from sparktrain.new_pipeline.files import data_file, model_file, test_file
from sparktrain.new_pipeline.source import HIDDEN_COLUMNS, Source
from sparktrain.preparation.cast import cast_columns
from sparktrain.preparation.check import RESERVED_NAMES
from sparktrain.preparation.guess import Guess, guess_features

_TAKEN = (*RESERVED_NAMES, PREDICTION, PROBABILITY, SCORE_ERROR)
_GIT_IGNORED = "# what running leaves behind\nout/\n__pycache__/\n"


@dataclass(frozen=True)
class Created:
    """A new pipeline.

    Attributes:
        files: that were written, in the order in which they are worth reading.
        guess: what was guessed of the columns.
    """

    name: str
    into: Path
    files: tuple[Path, ...]
    guess: Guess

    @property
    def config(self) -> Path:
        return Path("conf") / f"{self.name}.yaml"

    @property
    def commands(self) -> list[str]:
        """What to type next, in the folder that the pipeline was written into."""
        return [
            f"sparktrain run {self.config}",
            f"sparktrain prepare {self.config}",
            f"python -m pytest tests/test_{self.name}.py",
        ]


@dataclass(frozen=True)
class Rows:
    """The rows of a new pipeline, and how its read() comes by them.

    Attributes:
        schema: of files of text, as DDL.
        renamed: columns by their old names.
        casts: SQL type by column.
    """

    source: Source
    frame: DataFrame
    schema: str | None
    renamed: dict[str, str]
    casts: Mapping[str, str]


def init_pipeline(
    rows: DataFrame | str | Path,
    name: str,
    target: str,
    *,
    into: str | Path = ".",
    source: str | None = None,
    spark: SparkSession | None = None,
) -> Created:
    """Guess what the columns are, and write a pipeline that runs as it stands. Nothing is overwritten.

    Args:
        rows: a DataFrame; or a Parquet, CSV or JSON file or folder, or the name of a table.
        name: of the pipeline, a Python name in small letters.
        target: column to predict.
        into: folder of the project, with pipelines/ and conf/ in it or to come.
        source: where read() shall find the rows of a DataFrame, a file or a table; None: they are written to
            `<into>/data/<name>.parquet`.
        spark: session to use; the DataFrame's own, or the active one.

    Raises:
        ConfigError: a name that can't be one, a folder that can't be written to.
        PipelineExists: files are there already.
        SourceMissing, SourceUnreadable: no rows to read.
        TargetUnusable, FeaturesInvalid: nothing can be learnt of these columns.
    """
    folder = Path(into)
    if isinstance(rows, DataFrame):
        frame = rows
        session = spark or rows.sparkSession
        stored = folder / "data" / f"{name}.parquet"
        check_new(name, folder, stored if source is None else None)
        if source is None:
            frame.write.parquet(str(stored.resolve()))
            source = str(stored)
        place = Source.of(source)
    else:
        check_new(name, folder)
        place = Source.of(str(rows))
        session = spark or _active()
    return write_pipeline(_read(place, session), name, target, folder)


def check_new(name: str, into: Path, *more: Path | None) -> None:
    """Refuse what can be refused before Spark is started.

    Raises:
        ConfigError: a name that can't be one, a folder that can't be written to.
        PipelineExists: files are there already.
    """
    if not re.fullmatch(r"(?!__)[a-z_][a-z0-9_]*", name) or keyword.iskeyword(name):
        problem = f"{name!r} can't name a pipeline: give small letters, digits and _, such as house_prices"
        raise ConfigError([problem], "the name")
    wanted = [into / "pipelines" / name, *(into / file for file in _files(name)), *(p for p in more if p)]
    if taken := [str(path) for path in wanted if path.exists()]:
        raise PipelineExists(taken)
    _check_writable(into)


def _check_writable(into: Path) -> None:
    """Try the nearest folder that is there: nothing is left behind."""
    there = next(folder for folder in (into.absolute(), *into.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise _unwritable(into, error) from None


def _unwritable(into: Path, error: OSError) -> ConfigError:
    problem = f"nothing can be written to {into} ({error.strerror or error}): give a folder that is yours"
    return ConfigError([problem], "--into")


def _files(name: str) -> tuple[str, str]:
    return f"conf/{name}.yaml", f"tests/test_{name}.py"


def _active() -> SparkSession:
    from sparktrain.gang.launch import active_session

    return active_session()


def _read(source: Source, spark: SparkSession) -> Rows:
    """Read the rows, under names that preparation takes."""
    frame, schema = source.read(spark)
    renamed = {name: new for name in frame.columns if (new := _allowed(name, frame.columns)) != name}
    return Rows(source, frame.withColumnsRenamed(renamed), schema, renamed, {})


def _allowed(name: str, names: list[str]) -> str:
    """A name that preparation and scoring take: they add columns, and backticks quote names."""
    allowed = name.replace("`", "_")
    taken = {other.lower() for other in names if other != name} | set(_TAKEN)
    if name != MALFORMED_COLUMN:
        while allowed.lower() in taken:
            allowed += "_"
    return allowed


def write_pipeline(rows: Rows, name: str, target: str, into: Path) -> Created:
    """Guess, and write what was guessed."""
    target = rows.renamed.get(target, target)
    guess = guess_features(_readable(rows.frame), target, exclude=HIDDEN_COLUMNS)
    if guess.casts:
        rows = dataclasses.replace(rows, casts=guess.casts)
        kept = _readable(cast_columns(rows.frame, rows.casts))
        again = guess_features(kept, target, exclude=HIDDEN_COLUMNS)
        junk = {column: told for column in guess.casts if (told := _uncastable(guess, column))}
        guess = dataclasses.replace(again, warnings={**again.warnings, **junk})
    if rows.casts or MALFORMED_COLUMN in rows.frame.columns:  # not all rows were looked at
        guess = dataclasses.replace(guess, rows=rows.frame.count())
    return write_files(rows, name, guess, into)


def _readable(frame: DataFrame) -> DataFrame:
    """The rows that preparation does not quarantine for what they could not be read as."""
    marks = [name for name in HIDDEN_COLUMNS if name in frame.columns]
    return frame.where(" AND ".join(f"{name} IS NULL" for name in marks)) if marks else frame


def _uncastable(guess: Guess, column: str) -> str | None:
    """What is to be said of the text in a column that is mostly numbers or times."""
    seen = guess.columns[column]
    is_number = guess.casts[column] != "timestamp"
    junk = seen.count - (seen.numeric_texts if is_number else seen.time_texts)
    if seen.kind != "string" or not junk:
        return None
    what = "numbers" if is_number else "times"
    return f"{junk:,} of its {seen.count:,} texts are no {what}: their rows are quarantined, and never scored"


def write_files(rows: Rows, name: str, guess: Guess, into: Path) -> Created:
    """Write the files of what was guessed; no rows are read."""
    home = into / "pipelines" / name
    config, test = (into / file for file in _files(name))
    texts = {
        home / "data.py": data_file(rows.source, rows.schema, rows.renamed, rows.casts, name, guess),
        home / "model.py": model_file(name, guess),
        config: configuration(name, rows.source, guess),
        test: test_file(name, guess),
        home / "__init__.py": f'"""{_title(name, guess)}"""\n',
    }
    wanted = {into / "pipelines" / "__init__.py": "", into / ".gitignore": _GIT_IGNORED}
    texts |= {path: text for path, text in wanted.items() if not path.exists()}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:  # never over what came in the meantime
                file.write(text)
    except OSError as error:
        raise _unwritable(into, error) from None
    return Created(name, into, tuple(texts), guess)


def _title(name: str, guess: Guess) -> str:
    return f"{name}: what is `{guess.target.name}`, told by {len(guess.features)} other columns?"
