"""From `run()` to the first collective done, and to the return: our gang beside TorchDistributor."""

from __future__ import annotations

from statistics import median

from tests.benchmarks.children import Child
from tests.benchmarks.tables import print_figures

ROUNDS = 3
PEER = "TorchDistributor"
WARM_RUNS = {"gang": 10, "gang, torch in the daemon": 10, PEER: 2}


def test_gang_beside_torch_distributor() -> None:
    cold: dict[str, list[tuple[float, float]]] = {way: [] for way in WARM_RUNS}
    warm: dict[str, list[tuple[float, float]]] = {way: [] for way in WARM_RUNS}
    for _ in range(ROUNDS):
        for way, runs in WARM_RUNS.items():
            with Child("start_gangs") as child:
                first, *others = child.ask(way=way, runs=1 + runs)
            cold[way].append(first)
            warm[way] += others
    rows = []
    for name, found in (("cold", cold), ("warm", warm)):
        seconds = {
            way: [median(column) for column in zip(*times, strict=True)] for way, times in found.items()
        }
        for way, (collective, returned) in seconds.items():
            ratios = (peer / own for peer, own in zip(seconds[PEER], (collective, returned), strict=True))
            rows.append(
                [f"{way}, {name}", f"{collective:.2f}", f"{returned:.2f}", *(f"{r:.1f}" for r in ratios)]
            )
    header = ["2 ranks on local[2]", "s to collective", "s to return", "× faster", "× faster"]
    print_figures(f"A gang's start, medians of {ROUNDS} sessions", header, rows)
