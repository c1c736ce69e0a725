# Databricks notebook source
# MAGIC %md
# MAGIC # Kill a rank, and watch the training recover
# MAGIC
# MAGIC Ranks die: a machine goes away, memory runs out, somebody pulls a plug. Here the same training runs
# MAGIC twice. The first time nobody disturbs it. The second time one of its two processes is killed in the
# MAGIC middle, with the signal that can't be caught. At the end we compare what came out: every loss, and
# MAGIC every metric.
# MAGIC
# MAGIC The kill is a plain `os.kill`, so the ranks have to run on this machine: `local[2]`, or a
# MAGIC single-node cluster.

# COMMAND ----------

import json
import os
import signal
import sys
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

root = next(f for f in (Path.cwd(), *Path.cwd().parents) if (f / "conf" / "flight_delays.yaml").is_file())
sys.path.insert(0, str(root))  # pipelines/ is there

import sparktrain
from pipelines.flight_delays import data, model
from sparktrain.config import load_config
from sparktrain.runs.directory import RunDirectory
from sparktrain.runs.story import Story
from sparktrain.session import start_spark

places = [f"storage.root={root / 'out'}"]
if "dbutils" in globals():
    dbutils.widgets.text("storage", "/Volumes/main/default/sparktrain")
    places = [f"storage.root={dbutils.widgets.get('storage')}", "tracking.uri=databricks"]
    places += ["tracking.experiment=/Shared/flight_delays"]
if "display" not in {*globals(), *dir(__builtins__)}:  # a plain Python process
    display = print

# COMMAND ----------

# MAGIC %md
# MAGIC ## A training that keeps checkpoints
# MAGIC Without a checkpoint a restart begins at the first step. With `checkpoint_every_steps` at most so
# MAGIC many are done again. Everything else is the flights' own configuration, with fewer flights and
# MAGIC smaller batches.

# COMMAND ----------

changes = ["train.epochs=4", "train.global_batch_size=64", "train.checkpoint_every_steps=100"]
changes += ["train.reference=none", "tracking.register_model=false"]
config = load_config(root / "conf" / "flight_delays.yaml", [*places, *changes])
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
undisturbed = sparktrain.train(dataset, model.Task(), config, spark=spark)
print(f"{undisturbed.steps:,} steps in {undisturbed.attempts} attempt")

# COMMAND ----------

# MAGIC %md
# MAGIC ## The kill
# MAGIC `on_event` is called on the driver with whatever the ranks tell. When they are some fifty steps past
# MAGIC the second checkpoint, we look up the process of rank 1 in the run directory, and kill it.

# COMMAND ----------

killed = []


def kill_rank_1(event):
    if event["kind"] == "progress" and event["attempt"] == 1 and event["step"] >= 250 and not killed:
        run = RunDirectory.newest_unfinished(config.storage.root, config.pipeline)
        pid = json.loads((run.attempt(1) / "ranks" / "rank-001-started.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        killed.append({"pid": pid, "time": event["time"]})


recovered = sparktrain.train(dataset, model.Task(), config, spark=spark, on_event=kill_rank_1)
print(f"killed: {len(killed)} process; {recovered.steps:,} steps in {recovered.attempts} attempts")
recovered

# COMMAND ----------

# MAGIC %md
# MAGIC ## What happened
# MAGIC The driver saw that a rank was gone, ended the other one, and started both again from the newest
# MAGIC checkpoint. The run directory tells the whole story.

# COMMAND ----------

story = Story(RunDirectory(Path(recovered.run_dir)))
attempts = [
    {
        "attempt": attempt.number,
        "seconds": round(attempt.ended - attempt.began, 1),
        "from step": attempt.first_step,
        "to step": attempt.last_step,
        "what went wrong": attempt.failure.partition("\n")[0][:90],
    }
    for attempt in story.attempts
]
display(pd.DataFrame(attempts).set_index("attempt"))

# COMMAND ----------

# MAGIC %md
# MAGIC The same by time: the steps of the first attempt after its last checkpoint are done twice, nothing
# MAGIC else is lost.

# COMMAND ----------

figure, axes = plt.subplots(figsize=(8, 3))
steps = [event for event in story.events if event["kind"] == "metrics" and "train/loss" in event["values"]]
for attempt in story.attempts:
    own = [event for event in steps if event["attempt"] == attempt.number]
    seconds = [event["time"] - story.attempts[0].began for event in own]
    axes.plot(seconds, [event["step"] for event in own], marker=".", label=f"attempt {attempt.number}")
axes.axvline(killed[0]["time"] - story.attempts[0].began, color="grey", ls=":", label="rank 1 is killed")
axes.set(xlabel="seconds", ylabel="step")
axes.legend(frameon=False)
display(figure)
plt.close(figure)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Did it matter?
# MAGIC The same losses, to the last bit, at every step; and the same metrics in the end.

# COMMAND ----------

before = dict(Story(RunDirectory(Path(undisturbed.run_dir))).curves["train/loss"])
after = dict(story.curves["train/loss"])
different = [step for step in before if before[step] != after.get(step)]
print(f"{len(before)} losses, different: {len(different)}")
display(pd.DataFrame({"undisturbed": undisturbed.metrics, "with a kill": recovered.metrics}))
assert recovered.attempts == 2 and not different and undisturbed.metrics == recovered.metrics

# COMMAND ----------

if "dbutils" not in globals():  # on Databricks the session belongs to the cluster
    spark.stop()
