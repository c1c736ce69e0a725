"""`mlflow models serve` on a registered model: raw rows as JSON, over a real socket."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparktrain.scoring.model import ServedModel
from tests.fixtures.rich_model import BAD, RAW, rich_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Row = dict[str, Any]


class Server:
    """`mlflow models serve` of a model's directory, on loopback. A context manager."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        command = [
            *(sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
        ]
        self._log = log
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow calls uvicorn
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd=log.parent,
                env={**os.environ, "PATH": path},
            )

    def __enter__(self) -> Server:
        deadline = time.monotonic() + 150
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"no answer in time:\n{self._log.read_text()[-3000:]}"
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ping", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def post(self, payload: object) -> tuple[int, Any]:
        """Return the status and the JSON of the answer; a NaN in it is an error."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/invocations",
            json.dumps(payload).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read(), parse_constant=_no_json)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture(scope="module")
def server(rich: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(rich, tmp_path_factory.mktemp("server") / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return rich_model("digit")


def as_json(row: Row) -> Row:
    """Times and dates as ISO text, bytes as base64."""
    texts = {name: row[name] and row[name].isoformat() for name in ("moment", "day")}
    image = row["image"]
    return {**row, **texts, "image": None if image is None else base64.b64encode(image).decode()}


ROWS = [as_json(row) for row in RAW.to_pylist()]


def check_scores(found: list[Row], model: ServedModel) -> None:
    expected = model.score_arrow(RAW).to_pylist()
    assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
    probability = [row["probability"] for row in found]
    np.testing.assert_allclose(probability, [row["probability"] for row in expected], atol=1e-6)
    assert all(list(row) == ["prediction", "probability", "score_error"] for row in found)
    assert all(row["score_error"] is None for row in found)


def test_rows_of_all_kinds_of_columns_are_scored_as_records_and_as_a_table(
    server: Server, model: ServedModel
) -> None:
    status, answer = server.post({"dataframe_records": ROWS})
    assert status == 200, answer
    check_scores(answer["predictions"], model)
    table = {"columns": RAW.column_names, "data": [list(row.values()) for row in ROWS]}
    assert server.post({"dataframe_split": table}) == (200, answer)


def test_a_row_that_lacks_fields_has_nulls_there(server: Server, model: ServedModel) -> None:
    first = {**ROWS[0], "count": None, "word": None, "moment": None, "image": None, "extra": "ignored"}
    sparse = {name: value for name, value in first.items() if value is not None}
    status, answer = server.post({"dataframe_records": [ROWS[1], sparse]})
    assert status == 200, answer
    rows = RAW.slice(0, 2).to_pylist()
    nulls = {**rows[0], **dict.fromkeys(("count", "word", "moment", "image"))}
    expected = model.score_arrow(pa.Table.from_pylist([rows[1], nulls], RAW.schema))
    found = [row["probability"] for row in answer["predictions"]]
    np.testing.assert_allclose(found, expected["probability"].to_pylist(), atol=1e-6)


def test_bad_rows_get_their_reasons_in_the_answer(server: Server, model: ServedModel) -> None:
    bad = [as_json({**RAW.to_pylist()[0], column: value}) for column, value, _ in BAD.values()]
    garbled: list[tuple[str, object, str]] = [
        ("number", "far", "column `number`: 'far' is no number"),
        ("count", 1.5, "column `count`: "),
        ("flag", "perhaps", "column `flag`: 'perhaps' is string, expected boolean"),
        ("moment", "yesterday", "column `moment`: 'yesterday' is no ISO time"),
        ("moment", "2024-01-03T04:00:00", "column `moment`: a time without zone, where other rows have one"),
        ("day", "2024-13-01", "column `day`: '2024-13-01' is no ISO time"),
        ("vector", "1,2,3", "column `vector`: "),
        ("vector", [1, "two", 3], "column `vector`: "),
        ("image", "not base64!", "column `image`: no base64"),
        ("word", 5, "column `word`: 5 is int64, expected string"),
    ]
    bad += [{**ROWS[0], column: value} for column, value, _ in garbled]
    reasons = [reason for _, _, reason in BAD.values()] + [reason for _, _, reason in garbled]
    status, answer = server.post({"dataframe_records": [*ROWS, *bad]})
    assert status == 200, answer
    found = answer["predictions"]
    check_scores(found[: len(ROWS)], model)
    for row, reason in zip(found[len(ROWS) :], reasons, strict=True):
        assert row["prediction"] is None and row["probability"] is None
        assert row["score_error"].startswith(reason), row


def test_a_bad_row_alone_has_its_reason_too(server: Server) -> None:
    for column, value, reason in (("number", "far", "'far' is no number"), ("word", 5, "5 is int64")):
        status, answer = server.post({"dataframe_records": [{**ROWS[0], column: value}]})
        (row,) = answer["predictions"]
        assert status == 200 and row["prediction"] is None
        assert row["score_error"].startswith(f"column `{column}`: {reason}")


def test_a_missing_column_is_a_bad_request_in_our_words(server: Server) -> None:
    lacking = [{name: value for name, value in row.items() if name != "word"} for row in ROWS]
    status, answer = server.post({"dataframe_records": lacking})
    assert status == 400 and "missing column `word`" in answer["message"]
