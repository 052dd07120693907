"""Measure a finished folder on what it was not trained on: exact greedy answers by subject.

    python examples/train_nano/evaluate.py            # the embedded model

Reads the quantized weights through mlx-lm, so the table is of the weights that ship, opened by a
program that is not ours. Prints a Markdown table; the numbers depend on nothing but the seed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import mlx.core as mx
from corpus import Dialogue, dialogue
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
from teach import Teacher
from tokenizers import Tokenizer

NANO = Path(__file__).parents[2] / "glm_mlx" / "nano"
Row = tuple[str, str]


def questions(count: int, seed: int) -> Iterator[Dialogue]:
    """Draw held-out dialogues: at most `count` for each subject and way of being new."""
    rng, drawn = Random(seed), Counter[Row]()
    for _ in range(200 * count):
        held_out = dialogue(rng, test=True)
        row = (held_out.subject, held_out.held_out)
        if drawn[row] < count:
            drawn[row] += 1
            yield held_out


def accuracy(folder: Path, *, count: int = 60, seed: int = 1, show: bool = False) -> str:
    """Ask the model in `folder` up to `count` questions a row; return the table in Markdown.

    `show` prints each question that was answered wrongly.
    """
    model, _ = load_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stops = json.loads((folder / "config.json").read_text())["eos_token_id"]
    teacher = Teacher((folder / "chat_template.jinja").read_text(encoding="utf-8"))
    asked, right = Counter[Row](), Counter[Row]()
    for held_out in questions(count, seed):
        ids = tokenizer.encode(teacher.prompt(held_out), add_special_tokens=False).ids
        written: list[int] = []
        for token, _ in generate_step(mx.array(ids), model, max_tokens=160):
            written.append(int(token))
            if token in stops:
                break
        said = tokenizer.decode(written, skip_special_tokens=False)
        is_right = said in teacher.right(held_out)
        row = (held_out.subject, held_out.held_out)
        asked[row] += 1
        right[row] += is_right
        if show and not is_right:
            print(f"{row}: {held_out.messages[-1]['content']!r} -> {said!r}")
    lines = ["| subject | new to the model | asked | exact |", "|---|---|---|---|"]
    lines += [
        f"| {r[0]} | {r[1]} | {asked[r]} | {right[r] / asked[r]:.1%} |" for r in sorted(asked)
    ]
    total = f"| all | | {asked.total()} | {right.total() / asked.total():.1%} |"
    return "\n".join([*lines, total])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=NANO)
    parser.add_argument("--count", type=int, default=60, help="questions a row of the table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print the questions answered wrongly")
    args = parser.parse_args()
    print(accuracy(args.model, count=args.count, seed=args.seed, show=args.show))


if __name__ == "__main__":
    main()
