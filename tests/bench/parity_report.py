"""Print, as JSON, our relative logit error against transformers over the whole parity matrix.

    python tests/bench/parity_report.py [--every N]

Each model is written to disk, loaded by both implementations and compared in fp32. The summary
holds the worst error for each value of each axis. Needs the `parity` extra and a few minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.matrix import LIMIT, all_cases, long_cases
from makers.oracle import measure


def main() -> int:
    """Measure, print, and return 1 if any model is over the limit."""
    parser = argparse.ArgumentParser(description="logit error against transformers, as JSON")
    parser.add_argument("--every", type=int, default=1, help="measure each Nth model only")
    cases = all_cases()[:: parser.parse_args().every] + long_cases()
    started = time.perf_counter()
    errors: dict[str, float] = {}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            errors[case.name] = measure(case, Path(folder))
    worst: dict[str, float] = {}
    for name, error in errors.items():
        for value in name.split("-"):
            worst[value] = max(error, worst.get(value, 0.0))
    over = [name for name, error in errors.items() if not error <= LIMIT]
    report = {
        "models": len(errors),
        "limit": LIMIT,
        "max_relative_error": max(errors.values()),
        "median_relative_error": sorted(errors.values())[len(errors) // 2],
        "worst_by_value": worst,
        "over_limit": over,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(report, indent=2))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
