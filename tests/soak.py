"""Kill a job's processes at seeded random moments, many times, and check every row each time.

    python tests/soak.py --engine standin --kills 2000 --seed 1
    python tests/soak.py --engine vllm --kills 50 --seed 1

Exit 0 when every round ended with the undisturbed run's rows; a failure prints the seed and keeps its directory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.kills import ENGINES, KillTrial


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=sorted(ENGINES), default="standin")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=None, help="rows of each round's job")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    arguments = parser.parse_args()

    directory = Path(tempfile.mkdtemp(prefix=f"soak-{arguments.engine}-{arguments.seed}-"))
    began_s = time.monotonic()
    trial = KillTrial(
        directory, ENGINES[arguments.engine], arguments.seed, workers=arguments.workers, rows=arguments.rows
    )
    rounds = 0
    try:
        while trial.kills.total < arguments.kills:
            rounds += 1
            name = f"r{rounds}"
            trial.round(name, arguments.kills - trial.kills.total)
            trial.check(name)
            print(f"round {rounds}: {trial.kills.total} kills {trial.kills.by_victim}", file=sys.stderr, flush=True)
            shutil.rmtree(directory / f"store-{name}")
            shutil.rmtree(directory / f"out-{name}")
    except BaseException:
        print(f"failed: --engine {arguments.engine} --seed {arguments.seed}; kept {directory}", file=sys.stderr)
        raise
    left = trial.survivors()
    shutil.rmtree(directory)
    result = {
        "engine": arguments.engine,
        "seed": arguments.seed,
        "rounds": rounds,
        "rows_per_round": len(trial.expected),
        "kills": trial.kills.total,
        "by_victim": trial.kills.by_victim,
        "interruptions": trial.interruptions,
        "resumed_rows": trial.resumed_rows,
        "rows_lost": 0,
        "rows_doubled": 0,
        "texts_differing": 0,
        "processes_left": len(left),
        "elapsed_s": round(time.monotonic() - began_s, 1),
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:16} {value}" for key, value in result.items()))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
