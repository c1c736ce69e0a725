"""Code that the driver sends is what its ranks import, whatever lies where Spark's workers started."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.scripts import run_script

pytestmark = [pytest.mark.spark, pytest.mark.timeout(300)]

SCRIPT = """
    import json, sys

    sys.path.insert(0, sys.argv[1])  # the driver's own, as a notebook sets it
    from sparktrain import Gang
    from sparktrain.gang.shipping import ship_package
    from sparktrain.testing import spark_session

    def place():
        import pipelines.sent.model

        return pipelines.sent.model.__file__

    with spark_session("local[2]") as spark:
        ship_package(spark, "pipelines")
        print(json.dumps(Gang(spark, ranks=2).run(place)))
"""


def test_what_was_sent_comes_before_a_folder_of_the_same_name(tmp_path: Path) -> None:
    there, project = tmp_path / "there", tmp_path / "project"
    for package in (there / "pipelines", project / "pipelines"):
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    (project / "pipelines" / "sent").mkdir()  # without __init__.py, as many a pipeline is
    (project / "pipelines" / "sent" / "model.py").touch()
    for place in run_script(SCRIPT, there, project):
        assert Path(place).parts[-4:] == ("pipelines.zip", "pipelines", "sent", "model.py")
