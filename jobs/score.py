"""spark-submit jobs/score.py --config conf/flight_delays.yaml [--json] [section.key=value …]"""

import sys
from pathlib import Path

# spark-submit only puts this file's folder on the path; pipelines/ lies beside it. Databricks may run a file
# without telling it its name, from its own folder.
sys.path.insert(0, str(Path(globals().get("__file__", "score.py")).resolve().parents[1]))

from sparktrain.cli import job, score_work

if __name__ == "__main__":
    job(score_work, __doc__)
