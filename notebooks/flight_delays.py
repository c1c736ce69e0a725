# Databricks notebook source
# MAGIC %md
# MAGIC # Late flights, from a DataFrame to a scored DataFrame
# MAGIC
# MAGIC A tenth of the flights that left New York City in 2013, two ranks: about a minute.

# COMMAND ----------

import os
import sys
from pathlib import Path

root = next(folder for folder in (Path.cwd(), Path.cwd().parent) if (folder / "conf").is_dir())
sys.path.insert(0, str(root))

import sparktrain
from pipelines.flight_delays import data, model
from sparktrain.config import load_config
from sparktrain.session import start_spark

changes = ["train.epochs=5", "train.global_batch_size=512", f"storage.root={root / 'out'}"]
config = load_config(root / "conf" / "flight_delays.yaml", changes)
spark = start_spark(config)  # on Databricks: the cluster's own session

# COMMAND ----------

# MAGIC %md
# MAGIC ## Prepare
# MAGIC Raw rows become a dataset: cleaned, split by a hash of the key, normalized, shuffled, written.

# COMMAND ----------

flights = data.read(spark, config.storage.root.resolve() / "source", fraction=0.1)
dataset = sparktrain.prepare(
    flights,
    data.FEATURES,
    data.TARGET,
    config.prepare,
    name=config.pipeline,
    root=config.storage.root,
    rules=data.RULES,
    key=data.KEY,
)
print(f"{dataset.manifest.rows_in:,} rows in, quarantined: {dataset.manifest.quarantined}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Train
# MAGIC A gang of two ranks; the run and the model go to MLflow.

# COMMAND ----------

result = sparktrain.train(dataset, model.Task(), config, spark=spark)
for name, value in sorted(result.metrics.items()):
    print(f"{name:32} {value:.4f}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Score
# MAGIC The registered model takes raw rows.

# COMMAND ----------

from sparktrain.runs.connection import resolve_tracking_uri

scored = sparktrain.score(
    flights, result.model_uri, tracking_uri=resolve_tracking_uri(config.tracking, config.storage.root)
)
scored.select("time_hour", "carrier", "flight", "origin", "dest", "probability").show(5)

# COMMAND ----------

if "DATABRICKS_RUNTIME_VERSION" not in os.environ:  # there the session belongs to the notebook, not to us
    spark.stop()
