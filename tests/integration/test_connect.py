"""Over Spark Connect all is as in a classic session: code is sent, a DataFrame becomes probabilities."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pyspark
import pytest

from sparktrain.testing import ConnectServer
from tests.fixtures.command import CONF, Workplace
from tests.fixtures.scripts import run_script
from tests.integration.test_from_python import MODEL

pytestmark = [
    pytest.mark.spark,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(pyspark.__version__ < "4", reason="Spark 3.5 brings no Connect server in its package"),
]

SCRIPT = """
    import json, sys
    from pathlib import Path

    import sparktrain
    from sparktrain.config import parse_config
    from sparktrain.features import Categorical, Numeric, Target
    from sparktrain.testing import spark_session

    sys.path.insert(0, "code")  # which the server does not have
    from squares.model import Task

    settings = {
        "pipeline": "flight_delays",
        "storage": {"root": "out"},
        "train": {"epochs": 8, "global_batch_size": 256, "learning_rate": 0.02},
        "tracking": {"experiment": "squares", "registered_model": "squares"},
    }
    with spark_session("connect[2]") as spark:
        values = [(i, i % 7 / 7.0, i % 5 / 5.0, "red" if i % 3 else "blue") for i in range(4000)]
        rows = spark.createDataFrame(
            [(i, a, b, colour, a + b + (colour == "red") > 1.3) for i, a, b, colour in values],
            "id long, length double, height double, colour string, large boolean",
        )
        config = parse_config(settings)
        features = [Numeric("length"), Numeric("height"), Categorical("colour")]
        dataset = sparktrain.prepare(
            rows, features, Target("large"), config.prepare, name="squares", root="out", key=["id"]
        )
        result = sparktrain.train(dataset, Task(width=16), config)
        uri = f"sqlite:///{Path.cwd()}/out/mlflow.db"
        scored = sparktrain.score(rows.drop("large"), result.model_uri, tracking_uri=uri)
        found = {"status": result.status, "auroc": result.metrics["test/auroc"], "rows": scored.count()}
        found["session"] = type(spark).__module__
    print(json.dumps(found))
"""


def test_a_dataframe_becomes_probabilities(tmp_path: Path) -> None:
    package = tmp_path / "code" / "squares"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model.py").write_text(dedent(MODEL))
    found = run_script(SCRIPT, tmp_path)
    assert found.pop("auroc") > 0.9
    assert found == {"status": "finished", "rows": 4000, "session": "pyspark.sql.connect.session"}


def test_doctor_looks_at_a_connect_server(workplace: Workplace, tmp_path: Path) -> None:
    with ConnectServer() as server:
        master = f"spark.master={server.url}"
        ended = workplace.run("doctor", CONF, master, f"storage.root={tmp_path}/out", "--json")
    assert ended.exit_code == 0, ended.stderr
    found = {finding["what"]: finding["level"] for finding in ended.json["findings"]}
    assert found.keys() >= {"slots", "executors", "run directory", "network"}
    assert "Java" not in found, "the client needs none"
    assert set(found.values()) == {"ok"}
