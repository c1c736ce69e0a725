"""spark-submit jobs/prepare.py --config conf/flight_delays.yaml [--json] [section.key=value …]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # spark-submit only knows this folder; pipelines/ is above

from sparktrain.cli import job, prepare_work

if __name__ == "__main__":
    job(prepare_work, __doc__)
