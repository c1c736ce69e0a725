"""The code that travels with a model, also when it came in a zip."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.fixtures.scripts import ROOT, run_script

SCRIPT = """
    import json, sys
    from pathlib import Path

    sys.path.insert(0, sys.argv[1])
    import sparktrain
    from sparktrain.runs.package import copy_own, copy_pipeline, find_package, own_folder

    into = Path(sys.argv[2])
    copy_pipeline("pipelines.digits", find_package("pipelines.digits"), into)
    copy_own(into)
    print(json.dumps({
        "from": sparktrain.__file__,
        "own": str(own_folder()),
        "copied": sorted(str(file.relative_to(into)) for file in into.rglob("*.py")),
    }))
"""


def test_code_from_a_zip_travels_like_code_from_a_folder(tmp_path: Path) -> None:
    bundle = tmp_path / "code.zip"
    with zipfile.ZipFile(bundle, "w") as files:
        for package in ("sparktrain", "pipelines"):
            for file in (ROOT / package).rglob("*.py"):
                files.write(file, file.relative_to(ROOT))
    found = {}
    for kind, source in {"zip": bundle, "folder": ROOT}.items():
        into = tmp_path / kind
        into.mkdir()
        found[kind] = run_script(SCRIPT, tmp_path, source, into, timeout_seconds=60)
        assert found[kind]["from"].startswith(str(source))
    assert found["zip"]["copied"] == found["folder"]["copied"]
    assert {"pipelines/digits/model.py", "sparktrain/scoring/served.py"} <= set(found["zip"]["copied"])
    assert not Path(found["zip"]["own"]).exists(), "what was unpacked goes with the process"
