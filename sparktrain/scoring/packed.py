"""A model's directory as one value that travels in a Spark closure, and its unpacking over there."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sparktrain.errors import ModelUnusable
from sparktrain.features import FittedFeatures
from sparktrain.runs.package import FEATURES_FILE, TASK_FILE, WEIGHTS_FILE
from sparktrain.scoring.model import ServedModel

_MAX_BYTES = 1 << 30  # beyond it, a copy in every task's closure is the wrong way to ship a model
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ARTIFACTS = "artifacts"
_CODE = "code"


@dataclass(frozen=True)
class PackedModel:
    """A zip of the files that scoring needs.

    Attributes:
        digest: names the content: equal files, equal digest.
        content: the zip.
    """

    digest: str
    content: bytes = field(repr=False)

    @classmethod
    def of(cls, directory: Path, model_uri: str) -> PackedModel:
        """Pack the directory of a logged model.

        Raises:
            ModelUnusable: when sparktrain did not log it, or when it is too large to ship.
        """
        missing = [
            name
            for name in (FEATURES_FILE, TASK_FILE, WEIGHTS_FILE)
            if not (directory / _ARTIFACTS / name).is_file()
        ]
        if missing:
            raise ModelUnusable(
                model_uri,
                f"it has no {', '.join(missing)}, so sparktrain did not log it",
                "give a model that sparktrain registered; others have mlflow.pyfunc.spark_udf",
            )
        files = [path for part in (_ARTIFACTS, _CODE) for path in (directory / part).rglob("*")]
        size = sum(path.stat().st_size for path in files)
        if size > _MAX_BYTES:
            raise ModelUnusable(
                model_uri,
                f"it has {size:,} bytes, more than the {_MAX_BYTES:,} that travel with a Spark job",
                "score with mlflow.pyfunc.spark_udf, which downloads the model on each host",
            )
        content = _zip(directory, files)
        return cls(hashlib.sha256(content).hexdigest(), content)

    @property
    def features(self) -> FittedFeatures:
        """The fitted features, without unpacking the rest."""
        with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
            return FittedFeatures.from_json(archive.read(f"{_ARTIFACTS}/{FEATURES_FILE}"))

    def load(self, parent: Path, device: torch.device | None = None) -> ServedModel:
        """Unpack under `parent` unless that was done before, and load."""
        directory = self._unpack(parent)
        return ServedModel.load(directory / _ARTIFACTS, directory / _CODE, device)

    def _unpack(self, parent: Path) -> Path:
        """Unpack into a directory of our own, then rename it: of two workers at once, one rename wins."""
        target = parent / self.digest
        if target.is_dir():
            return target
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=parent))
        try:
            with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
                archive.extractall(temporary)
            os.rename(temporary, target)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not target.is_dir():  # not a race that we lost
                raise
        return target


def _zip(directory: Path, files: list[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(files):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(directory).as_posix()
                entry = zipfile.ZipInfo(name, date_time=_EPOCH)  # times would change the digest
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()
