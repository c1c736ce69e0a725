"""Saving and loading: Params as Spark's own classes keep them, a model's files beside them.

Everything goes through Spark's readers and writers, so that whatever URI Spark knows will do, and Spark
Connect as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import TYPE_CHECKING, Any, cast

from pyspark.ml.param import Params
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReader, MLWriter
from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparktrain.errors import ModelUnusable
from sparktrain.estimator.fitting import Fitted
from sparktrain.estimator.inputs import Input
from sparktrain.gang.launch import active_session
from sparktrain.scoring.packed import PackedModel

if TYPE_CHECKING:
    from sparktrain.estimator.model import TorchModel

_CHUNK_BYTES = 16 << 20
_FILES = "part int, content binary"


class ParamsWriter(MLWriter):
    """Saves an estimator: its Params, in `<path>/metadata`."""

    def __init__(self, instance: Params) -> None:
        super().__init__()
        self.instance = instance

    @property
    def session_to_use(self) -> SparkSession:
        return self._sparkSession or active_session()

    def save(self, path: str) -> None:
        """Save to a path or URI that Spark knows; what is there is only replaced after `overwrite()`."""
        if not is_remote():
            self._handle_what_is_there(path)
        self.saveImpl(path)

    def _handle_what_is_there(self, path: str) -> None:
        """Remove it if that is wanted, else fail; pyspark's own writers look for parts of it only."""
        from pyspark.ml.wrapper import JavaWrapper

        made: Any = JavaWrapper._new_java_obj("org.apache.spark.ml.util.FileSystemOverwrite")
        session: Any = self.session_to_use
        JavaWrapper(made)._call_java("handleOverwrite", path, self.shouldOverwrite, session._jsparkSession)

    def saveImpl(self, path: str) -> None:
        self.write_metadata(path, {})

    def write_metadata(self, path: str, extra: dict[str, Any]) -> None:
        spark = self.session_to_use
        text = DefaultParamsWriter._get_metadata_to_save(self.instance, spark, extra)
        frame = spark.createDataFrame([(text,)], "value string").coalesce(1)
        frame.write.mode(self.mode).text(os.path.join(path, "metadata"))

    @property
    def mode(self) -> str:
        return "overwrite" if self.shouldOverwrite else "error"


class ModelWriter(ParamsWriter):
    """Saves a model: its Params, and its files in `<path>/data`, as Spark's own models keep theirs."""

    def saveImpl(self, path: str) -> None:
        instance: TorchModel = self.instance  # type: ignore[assignment]
        fitted = instance.fitted
        extra = {
            "numClasses": fitted.num_classes,
            "runId": fitted.run_id,
            "inputs": [dataclasses.asdict(item) for item in fitted.inputs],
            "sha256": fitted.packed.digest,
        }
        self.write_metadata(path, extra)
        content = fitted.packed.content
        for number, start in enumerate(range(0, len(content), _CHUNK_BYTES)):
            # each by itself: rows travel in their task, and spark.rpc.message.maxSize limits that
            chunk = [(number, bytearray(content[start : start + _CHUNK_BYTES]))]
            frame = self.session_to_use.createDataFrame(chunk, _FILES).coalesce(1)
            frame.write.mode("append" if number else self.mode).parquet(os.path.join(path, "data"))


class ParamsReader(MLReader[Any]):
    """Loads an estimator."""

    def __init__(self, cls: type[Params]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> Any:
        """Load from a path or URI that Spark knows.

        Raises:
            ModelUnusable: something else was saved there.
        """
        return self.instance_of(self.metadata_of(path))

    def instance_of(self, metadata: dict[str, Any]) -> Any:
        instance = self.cls()
        instance._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(cast(Any, instance), metadata)
        return instance

    @property
    def session_to_use(self) -> SparkSession:
        return self._sparkSession or active_session()

    def metadata_of(self, path: str) -> dict[str, Any]:
        # not by pyspark's loadMetadata: that of 3.5 wants a SparkContext, which Spark Connect has not
        row = self.session_to_use.read.text(os.path.join(path, "metadata")).first()
        if row is None:
            raise ModelUnusable(path, "its metadata are empty", "save it again")
        metadata = DefaultParamsReader._parseMetaData(row[0])
        wanted = f"{self.cls.__module__}.{self.cls.__name__}"
        if metadata["class"] != wanted:
            way_out = f"load it with {metadata['class']}.load"
            raise ModelUnusable(path, f"a {metadata['class']} was saved there, not a {wanted}", way_out)
        return metadata


class ModelReader(ParamsReader):
    """Loads a model."""

    def load(self, path: str) -> Any:
        """Load from a path or URI that Spark knows.

        Raises:
            ModelUnusable: something else was saved there, or files are damaged.
        """
        metadata = self.metadata_of(path)
        instance = self.instance_of(metadata)
        rows = self.session_to_use.read.schema(_FILES).parquet(os.path.join(path, "data")).collect()
        content = b"".join(bytes(row["content"]) for row in sorted(rows, key=lambda row: row["part"]))
        if hashlib.sha256(content).hexdigest() != metadata["sha256"]:
            raise ModelUnusable(path, "its files are not those that were saved", "save it again")
        inputs = tuple(Input(**item) for item in metadata["inputs"])
        packed = PackedModel(metadata["sha256"], content)
        instance._fitted = Fitted(packed, inputs, metadata["numClasses"], metadata["runId"])
        return instance
