"""Compare streamed with one-shot text over random replies and stop strings; print JSON.

python tests/bench/stream_exact.py [--count N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from makers.streams import random_case


def main() -> int:
    """Compare, print, and return 1 if any text differs."""
    parser = argparse.ArgumentParser(description="streamed text against one-shot text, as JSON")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    cases = [random_case(draw) for _ in range(options.count)]
    different = [case for case in cases if case.streamed() != case.one_shot()]
    whole = [b"".join(case.tokens).decode("utf-8", "replace") for case in cases]
    report = {
        "cases": len(cases),
        "tokens": sum(len(case.tokens) for case in cases),
        "with_stop_strings": sum(bool(case.stops) for case in cases),
        "stopped": sum(case.one_shot() != text for case, text in zip(cases, whole, strict=True)),
        "with_broken_utf8": sum("\ufffd" in text for text in whole),
        "different": len(different),
        "first_different": [repr(case) for case in different[:3]],
    }
    print(json.dumps(report, indent=2))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
