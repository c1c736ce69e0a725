# Databricks notebook source
# MAGIC %md
# MAGIC # Your first model
# MAGIC
# MAGIC From a DataFrame to a model in two ways. The estimator, if you live in `pyspark.ml`: `fit`,
# MAGIC `transform`, done. The pipeline, if the model is to stay: files of your own, runs in MLflow, a
# MAGIC registered model, recovery.

# COMMAND ----------

import sys
from pathlib import Path

from pyspark.ml.evaluation import BinaryClassificationEvaluator
from sklearn.datasets import load_breast_cancer

import sparktrain
from sparktrain.config import Config, load_config
from sparktrain.runs.connection import resolve_tracking_uri
from sparktrain.session import start_spark
from sparktrain.stages import prepare_stage, train_stage

root = next(f for f in (Path.cwd(), *Path.cwd().parents) if (f / "conf" / "flight_delays.yaml").is_file())
places = [f"storage.root={root / 'out'}"]
if "dbutils" in globals():
    dbutils.widgets.text("storage", "/Volumes/main/default/sparktrain")
    places = [f"storage.root={dbutils.widgets.get('storage')}", "tracking.uri=databricks"]
    places += ["tracking.experiment=/Shared/tumours"]
if "display" not in {*globals(), *dir(__builtins__)}:  # a plain Python process
    display = print

storage = Path(places[0].partition("=")[2])
# On Databricks: the cluster's own session; elsewhere Spark on this machine, with two slots.
spark = start_spark(Config(pipeline="tumours", storage={"root": storage}), with_pipelines=False)

# COMMAND ----------

# MAGIC %md
# MAGIC ## A DataFrame
# MAGIC Put yours here: `spark.table("…")`, `spark.read.parquet("…")`. This one is small: 569 tumours, 30
# MAGIC measurements of each, and whether they were benign.

# COMMAND ----------

frame = load_breast_cancer(as_frame=True).frame.rename(columns={"target": "benign"})
rows = spark.createDataFrame(frame.rename(columns=lambda name: name.replace(" ", "_")))
training, test = rows.randomSplit([0.8, 0.2], seed=0)
display(rows.select("mean_radius", "mean_texture", "worst_area", "benign").limit(3).toPandas())

# COMMAND ----------

# MAGIC %md
# MAGIC ## The estimator
# MAGIC A classifier like any other of `pyspark.ml`: it goes into a `Pipeline` and a `CrossValidator`, and
# MAGIC Spark's evaluators read its columns. What is different: `numWorkers` processes train one network
# MAGIC together.

# COMMAND ----------

columns = [name for name in rows.columns if name != "benign"]
classifier = sparktrain.TorchClassifier(
    inputCols=columns, labelCol="benign", maxIter=20, batchSize=32, numWorkers=2, seed=1
)
fitted = classifier.fit(training)
predicted = fitted.transform(test)
area = BinaryClassificationEvaluator(labelCol="benign").evaluate(predicted)
print(f"estimator: area under ROC {area:.3f} on {test.count()} tumours that it never saw")
display(
    predicted.select("mean_radius", "benign", "probability", "prediction")
    .orderBy("mean_radius")
    .limit(3)
    .toPandas()
)

# COMMAND ----------

# MAGIC %md
# MAGIC ## A pipeline of your own
# MAGIC `init_pipeline` looks at the rows and guesses what each column is; in a terminal that is
# MAGIC `sparktrain init tumours data.parquet --target benign`. You get short files to correct.

# COMMAND ----------

project = storage / "first_model"
if not (project / "conf" / "tumours.yaml").exists():  # it overwrites nothing
    sparktrain.init_pipeline(rows, "tumours", "benign", into=project)
for file in sorted(file for file in project.rglob("*") if file.suffix in {".py", ".yaml"}):
    print(file.relative_to(project))
print((project / "pipelines" / "tumours" / "data.py").read_text())

# COMMAND ----------

# MAGIC %md
# MAGIC It runs as it stands: rows become a dataset, one rank trains on it (for so few rows a second one
# MAGIC costs more time than it saves; `train.ranks` is the key), the model gets a version in MLflow.

# COMMAND ----------

sys.path.insert(0, str(project))  # its pipelines/ is found from here on
config = load_config(project / "conf" / "tumours.yaml", places)
dataset = prepare_stage(config, spark)
result = train_stage(config, spark, dataset)
print(f"pipeline: area under ROC {result.metrics['test/auroc']:.3f}, model {result.model_uri}")
result

# COMMAND ----------

# MAGIC %md
# MAGIC ## Use it
# MAGIC Anybody with access to the registry scores raw rows, here and in any other job.

# COMMAND ----------

tracking_uri = resolve_tracking_uri(config.tracking, config.storage.root)
scored = sparktrain.score(rows, config.model_uri, tracking_uri=tracking_uri)
display(
    scored.orderBy("probability")
    .select("mean_radius", "benign", "prediction", "probability")
    .limit(3)
    .toPandas()
)

# COMMAND ----------

# MAGIC %md
# MAGIC Next: [02_flights]($./02_flights) is the same with features that somebody has thought about.

# COMMAND ----------

if "dbutils" not in globals():  # on Databricks the session belongs to the cluster
    spark.stop()
