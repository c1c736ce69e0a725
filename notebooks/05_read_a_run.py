# Databricks notebook source
# MAGIC %md
# MAGIC # Read a run
# MAGIC
# MAGIC A training leaves a run directory, and an MLflow run that mirrors it. This notebook takes the newest
# MAGIC finished run of the flights and asks: did it learn, what did the ranks wait for, what was the data,
# MAGIC where is the model wrong?

# COMMAND ----------

import json
import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

root = next(f for f in (Path.cwd(), *Path.cwd().parents) if (f / "conf" / "flight_delays.yaml").is_file())
sys.path.insert(0, str(root))  # pipelines/ is there

import sparktrain
from pipelines.flight_delays import data, model
from sparktrain.config import load_config
from sparktrain.dataset.card import Card
from sparktrain.runs.connection import connect, resolve_tracking_uri
from sparktrain.session import start_spark

places = [f"storage.root={root / 'out'}"]
if "dbutils" in globals():
    dbutils.widgets.text("storage", "/Volumes/main/default/sparktrain")
    places = [f"storage.root={dbutils.widgets.get('storage')}", "tracking.uri=databricks"]
    places += ["tracking.experiment=/Shared/flight_delays"]
if "display" not in {*globals(), *dir(__builtins__)}:  # a plain Python process
    display = print

changes = ["train.epochs=4", "train.global_batch_size=256"]
config = load_config(root / "conf" / "flight_delays.yaml", [*places, *changes])

# COMMAND ----------

# MAGIC %md
# MAGIC ## The newest run
# MAGIC If there is none yet, a small one is trained now.

# COMMAND ----------


def finished_runs():
    files = config.storage.root.glob(f"runs/{config.pipeline}-*/result.json")
    found = [json.loads(file.read_text()) for file in sorted(files)]
    return [result for result in found if result["status"] == "finished" and result["run_id"]]


if not finished_runs():
    spark = start_spark(config)
    flights = data.read(spark, config.storage.root.resolve() / "source", fraction=0.05)
    names = {"name": config.pipeline, "root": config.storage.root}
    rules = {"rules": data.RULES, "key": data.KEY}
    dataset = sparktrain.prepare(flights, data.FEATURES, data.TARGET, config.prepare, **names, **rules)
    sparktrain.train(dataset, model.Task(), config, spark=spark)
    if "dbutils" not in globals():  # on Databricks the session belongs to the cluster
        spark.stop()

result = finished_runs()[-1]
run_dir = Path(result["run_dir"])
dataset = sparktrain.open_dataset(result["dataset"]["path"])
print(f"{run_dir.name}: {result['steps']:,} steps, {result['world_size']} ranks, {result['model_uri']}")
dataset

# COMMAND ----------

# MAGIC %md
# MAGIC ## Did it learn?
# MAGIC MLflow has every metric by step. The loss of the validation split should fall with that of the
# MAGIC training split; where it turns upwards, the model learns the training rows by heart.

# COMMAND ----------

client = connect(resolve_tracking_uri(config.tracking, config.storage.root))  # an MlflowClient


def curve(name):
    points = client.get_metric_history(result["run_id"], name)
    return pd.Series({point.step: point.value for point in points}, name=name).sort_index()


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
curve("train/loss").plot(ax=left, alpha=0.6)
curve("validation/loss").plot(ax=left, marker="o")
curve("validation/auroc").plot(ax=right, marker="o")
for axes, name in ((left, "loss"), (right, "AUROC")):
    axes.set(xlabel="step", ylabel=name)
    axes.legend(frameon=False)
figure.tight_layout()
display(figure)
plt.close(figure)

# COMMAND ----------

# MAGIC %md
# MAGIC ## How good is it?
# MAGIC The metrics of the best checkpoint, beside those of a logistic regression on the same rows. A model
# MAGIC that does not beat the regression is not worth its network.

# COMMAND ----------

metrics = pd.Series(result["metrics"])
split_and_name = metrics.index.str.split("/", n=1, expand=True)
evaluation = metrics.set_axis(split_and_name).unstack(0)
display(evaluation.round(4))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What did the ranks wait for?
# MAGIC Of each step's time: for data, for the others' gradients, for the slowest rank. `data_headroom` near
# MAGIC 1 says that faster reading would gain nothing; at 0.5 the ranks could go twice as fast. What is left
# MAGIC is the model's own work.

# COMMAND ----------

waits = [
    "data_wait_fraction",
    "communication_fraction",
    "straggler_fraction",
    "data_headroom",
    "rows_per_second",
]
table = pd.DataFrame({name: curve(f"train/{name}").describe()[["50%", "min", "max"]] for name in waits}).T
display(table.rename(columns={"50%": "median"}).round(3))

# COMMAND ----------

# MAGIC %md
# MAGIC ## What was the data?
# MAGIC The data card is a page beside the dataset, and in the run's artifacts; here are its figures.
# MAGIC Columns that are often null, or full of values that training never saw, are where to look first.

# COMMAND ----------

card = Card.load(dataset.path)
columns = [
    {
        "column": column.column,
        "null": column.null_rate,
        "unknown": column.unknown_rate,
        "distinct": column.distinct,
        "mean": column.mean,
        "smallest": column.smallest,
        "largest": column.largest,
    }
    for column in card.columns
]
display(pd.DataFrame(columns).set_index("column").sort_values("null", ascending=False).round(3).head(8))
print(f"the whole card: {dataset.path / 'card.html'}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Where is it wrong?
# MAGIC The ranks left a prediction for each row of the test split, with the row's number in the dataset
# MAGIC (`row_id`). In groups by what the model said: which part was really late? On the dotted line it is
# MAGIC as sure as it should be.

# COMMAND ----------

predictions = pd.read_parquet(run_dir / "predictions")
predictions["group"] = pd.cut(predictions["probability"], [0, 0.1, 0.2, 0.3, 0.4, 0.6, 1])
groups = predictions.groupby("group", observed=True)
calibration = groups.agg(flights=("target", "size"), said=("probability", "mean"), late=("target", "mean"))
display(calibration.round(3))

figure, axes = plt.subplots(figsize=(4, 4))
axes.plot([0, 1], [0, 1], color="grey", ls=":")
axes.plot(calibration["said"], calibration["late"], marker="o")
axes.set(xlabel="what the model said", ylabel="what part was late")
display(figure)
plt.close(figure)

# COMMAND ----------

# MAGIC %md
# MAGIC ## All of it on one page
# MAGIC `report.html` has the above and more (attempts, hosts, settings, incidents) without this notebook;
# MAGIC it is among the run's artifacts, too.

# COMMAND ----------

artifacts = sorted(file.path for file in client.list_artifacts(result["run_id"]))
print(f"{run_dir / 'report.html'}\nartifacts: {', '.join(artifacts)}")
