# Databricks notebook source
# MAGIC %md
# MAGIC # Late flights, end to end
# MAGIC
# MAGIC Will a flight arrive more than 15 minutes late? A tenth of the flights that left New York City in
# MAGIC 2013 become a dataset, two ranks train on it, and the model that comes out scores raw rows. About a
# MAGIC minute.
# MAGIC
# MAGIC The first cell finds the repository and says where everything is written: on Databricks on a volume
# MAGIC that all machines see, elsewhere under `out/`.

# COMMAND ----------

import sys
from pathlib import Path

root = next(f for f in (Path.cwd(), *Path.cwd().parents) if (f / "conf" / "flight_delays.yaml").is_file())
sys.path.insert(0, str(root))  # pipelines/ is there

import sparktrain
from pipelines.flight_delays import data, model
from sparktrain.config import load_config
from sparktrain.runs.connection import resolve_tracking_uri
from sparktrain.session import start_spark

places = [f"storage.root={root / 'out'}"]
if "dbutils" in globals():
    dbutils.widgets.text("storage", "/Volumes/main/default/sparktrain")
    places = [f"storage.root={dbutils.widgets.get('storage')}", "tracking.uri=databricks"]
    places += ["tracking.experiment=/Shared/flight_delays"]
if "display" not in {*globals(), *dir(__builtins__)}:  # a plain Python process
    display = print

changes = [*places, "train.epochs=5", "train.global_batch_size=512"]
config = load_config(root / "conf" / "flight_delays.yaml", changes)
tracking_uri = resolve_tracking_uri(config.tracking, config.storage.root)
spark = start_spark(config)  # on Databricks: the cluster's own session

# COMMAND ----------

# MAGIC %md
# MAGIC ## What goes in
# MAGIC A DataFrame as it comes: nulls, text, numbers of any size. `arr_delay` is null where a flight was
# MAGIC cancelled.

# COMMAND ----------

flights = data.read(spark, config.storage.root.resolve() / "source", fraction=0.1)
shown = ["time_hour", "carrier", "flight", "origin", "dest", "temp", "plane_age", "arr_delay", "late"]
display(flights.select(*shown).limit(5).toPandas())

# COMMAND ----------

# MAGIC %md
# MAGIC ## Prepare
# MAGIC One pass learns means, deviations and vocabularies from the training rows; then rows are cleaned,
# MAGIC split by a hash of their key, shuffled once, and written as Parquet. A row that breaks a rule is set
# MAGIC aside with the rule's name.

# COMMAND ----------

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
dataset

# COMMAND ----------

# MAGIC %md
# MAGIC ## Train
# MAGIC Two processes start together in one barrier stage and share each batch. The run goes to MLflow, its
# MAGIC best checkpoint to the model registry. Beside the model's metrics stands a logistic regression on
# MAGIC the very same rows.

# COMMAND ----------

result = sparktrain.train(dataset, model.Task(), config, spark=spark)
print(f"AUROC {result.metrics['test/auroc']:.3f}, of the reference {result.metrics['reference/auroc']:.3f}")
result

# COMMAND ----------

# MAGIC %md
# MAGIC ## Score
# MAGIC The model takes raw rows: what was learned in `prepare` travels inside it. A row that it can't read
# MAGIC gets no score, and a reason. These are the flights that it is surest of:

# COMMAND ----------

scored = sparktrain.score(flights, result.model_uri, tracking_uri=tracking_uri)
scores = [name for name in scored.columns if name not in flights.columns]
surest = scored.orderBy("probability", ascending=False).limit(5)
display(surest.select("time_hour", "carrier", "flight", "dest", "late", *scores).toPandas())

# COMMAND ----------

# MAGIC %md
# MAGIC ## Is it any good?
# MAGIC Flights in ten groups by their probability: of each, how many there are and which part was really
# MAGIC late.

# COMMAND ----------

from pyspark.sql import functions as F

groups = scored.where("late IS NOT NULL").groupBy(F.floor(F.col("probability") * 10).alias("tenth"))
table = groups.agg(F.count("*").alias("flights"), F.avg(F.col("late").cast("int")).alias("late")).orderBy(
    "tenth"
)
display(table.toPandas())

# COMMAND ----------

if "dbutils" not in globals():  # on Databricks the session belongs to the cluster
    spark.stop()
