# Databricks notebook source
# MAGIC %md
# MAGIC # Tune with Optuna
# MAGIC
# MAGIC Optuna proposes settings, each trial is a training of the whole gang, and MLflow shows the trials as
# MAGIC children of one run. Every trial trains on the same dataset: it is prepared once. Only the best
# MAGIC trial's model gets a version.
# MAGIC
# MAGIC Four short trials here, for it is the way that matters. Needs `pip install optuna`.

# COMMAND ----------

import sys
from pathlib import Path

import optuna
import pandas as pd

root = next(f for f in (Path.cwd(), *Path.cwd().parents) if (f / "conf" / "flight_delays.yaml").is_file())
sys.path.insert(0, str(root))  # pipelines/ is there

import sparktrain
from pipelines.flight_delays import data
from sparktrain.config import load_config
from sparktrain.runs.connection import artifact_location, check_tracking, connect, resolve_tracking_uri
from sparktrain.session import start_spark
from sparktrain.stages import create_task

optuna.logging.set_verbosity(optuna.logging.WARNING)
places, experiment = [f"storage.root={root / 'out'}"], "flights_tuning"
if "dbutils" in globals():
    dbutils.widgets.text("storage", "/Volumes/main/default/sparktrain")
    places = [f"storage.root={dbutils.widgets.get('storage')}", "tracking.uri=databricks"]
    experiment = "/Shared/flights_tuning"
if "display" not in {*globals(), *dir(__builtins__)}:  # a plain Python process
    display = print

# COMMAND ----------

# MAGIC %md
# MAGIC ## One dataset for all trials

# COMMAND ----------

config = load_config(root / "conf" / "flight_delays.yaml", places)
spark = start_spark(config)
flights = data.read(spark, config.storage.root.resolve() / "source", fraction=0.05)
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
dataset

# COMMAND ----------

# MAGIC %md
# MAGIC ## The parent run
# MAGIC It holds nothing but the outcome; `tracking.parent_run_id` makes each trial its child.

# COMMAND ----------

tracking_uri = resolve_tracking_uri(config.tracking, config.storage.root)
check_tracking(tracking_uri)
client = connect(tracking_uri)  # an MlflowClient
known = client.get_experiment_by_name(experiment)
place = artifact_location(tracking_uri, config.storage.root)
experiment_id = known.experiment_id if known else client.create_experiment(experiment, place)
parent = client.create_run(experiment_id, run_name="tuning").info.run_id

# COMMAND ----------

# MAGIC %md
# MAGIC ## The trials
# MAGIC A trial is a configuration with a few keys changed. `register_model=false` leaves the registry
# MAGIC alone, and `early_stopping_evaluations` ends a trial that does not get better any more. The split
# MAGIC for validation is what trials are compared by; the test split stays untouched until one is chosen.

# COMMAND ----------

fixed = [
    "train.epochs=4",
    "train.global_batch_size=256",
    "train.early_stopping_evaluations=2",
    "train.reference=none",
    "tracking.register_model=false",
    "tracking.experiment=null",
    f"tracking.parent_run_id={parent}",
]


def objective(trial):
    width = trial.suggest_categorical("width", [32, 128])
    proposed = {
        "train.learning_rate": trial.suggest_float("learning_rate", 1e-3, 3e-2, log=True),
        "train.model.dropout": trial.suggest_float("dropout", 0.0, 0.3),
        "train.model.hidden_sizes": [width, width // 2],
    }
    changes = [*places, *fixed, *(f"{key}={value}" for key, value in proposed.items())]
    config = load_config(root / "conf" / "flight_delays.yaml", changes)
    result = sparktrain.train(dataset, create_task(config), config, spark=spark)
    trial.set_user_attr("run_dir", result.run_dir)
    trial.set_user_attr("model_uri", result.model_uri)
    return result.metrics["validation/auroc"]


study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
study.optimize(objective, n_trials=4)
print(f"{len(study.trials)} trials, the best is number {study.best_trial.number}: {study.best_params}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## What MLflow has
# MAGIC The children by their parent, as a table; on MLflow's page they fold under it.

# COMMAND ----------

for name, value in study.best_params.items():
    client.log_param(parent, name, value)
client.log_metric(parent, "validation/auroc", study.best_value)
client.set_terminated(parent)

children = client.search_runs(
    [experiment_id], f"tags.mlflow.parentRunId = '{parent}'", order_by=["start_time"]
)
settings = ["train.learning_rate", "train.model.dropout", "train.model.hidden_sizes"]
rows = [
    {name.rpartition(".")[2]: run.data.params[name] for name in settings}
    | {name: run.data.metrics[name] for name in ("validation/auroc", "test/auroc")}
    | {"status": run.info.status}
    for run in children
]
display(pd.DataFrame(rows).astype({"learning_rate": float, "dropout": float}).round(4))

# COMMAND ----------

# MAGIC %md
# MAGIC ## Register the best one
# MAGIC Its run has finished, and its checkpoint is there: `register` makes a version of it, under the alias
# MAGIC that scoring asks for.

# COMMAND ----------

model_uri = sparktrain.register(study.best_trial.user_attrs["run_dir"], "flights_tuned")
unregistered = [trial.number for trial in study.trials if trial.user_attrs["model_uri"] is None]
print(
    f"{model_uri} is trial {study.best_trial.number}'s; when they ended none was registered: {unregistered}"
)
scored = sparktrain.score(flights, "models:/flights_tuned@champion", tracking_uri=tracking_uri)
surest = scored.orderBy("probability", ascending=False).limit(3)
display(surest.select("time_hour", "carrier", "dest", "late", "probability").toPandas())

# COMMAND ----------

if "dbutils" not in globals():  # on Databricks the session belongs to the cluster
    spark.stop()
