"""Train the embedded nano model from nothing: corpus, tokenizer, weights, folder, accuracy.

    python examples/train_nano/train.py                # about half an hour on one CPU core

Everything is seeded. The run writes checkpoints into `--work` and goes on from the last one when
it is started again. Needs torch, transformers and mlx-lm: `pip install "glm-mlx[parity,test]"`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from corpus import Dialogue, dialogue
from evaluate import accuracy
from export import write_folder
from teach import Lesson, Teacher
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import Glm4Config, Glm4ForCausalLM
from vocabulary import build, learn_ranks, padded_rows

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "glm_mlx" / "text" / "templates" / "glm4_0414.jinja"
NANO = ROOT / "glm_mlx" / "nano"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=NANO, help="folder of the finished model")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "train_nano")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--dialogues", type=int, default=160_000)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", type=int, default=60, help="a row of the accuracy table")
    return parser.parse_args()


def model_config(tokenizer: Tokenizer) -> Glm4Config:
    """The glm4 architecture in small: grouped queries, half rotary, sandwich norms, biases."""
    vocabulary = tokenizer.get_vocab()
    stops = [vocabulary[stop] for stop in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    return Glm4Config(
        vocab_size=padded_rows(tokenizer),
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=512,
        attention_bias=True,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        pad_token_id=stops[0],
        eos_token_id=stops,
    )


def batches(lessons: list[Lesson], batch_tokens: int, rng: Random) -> list[list[int]]:
    """Group lessons of like length so that a batch, padded, has at most `batch_tokens`."""
    order = sorted(range(len(lessons)), key=lambda i: (len(lessons[i].ids), rng.random()))
    grouped: list[list[int]] = [[]]
    for index in order:
        if (len(grouped[-1]) + 1) * len(lessons[index].ids) > batch_tokens:
            grouped.append([])
        grouped[-1].append(index)
    rng.shuffle(grouped)
    return grouped


def padded(lessons: list[Lesson]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and the mask of learnt positions, both (B, L), padded on the right."""
    width = max(len(lesson.ids) for lesson in lessons)
    ids = torch.zeros(len(lessons), width, dtype=torch.long)
    learnt = torch.zeros(len(lessons), width, dtype=torch.bool)
    for row, lesson in enumerate(lessons):
        ids[row, : len(lesson.ids)] = torch.tensor(lesson.ids)
        learnt[row, : len(lesson.ids)] = torch.tensor(lesson.learnt)
    return ids, learnt


def make_optimizers(model: Glm4ForCausalLM, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding, head, biases and norms.

    Muon learns about twice as much from a batch here, for a sixth more time.
    """
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    outer = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." not in n]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(
        [{"params": inner, "peak": peak}], weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(
        [
            {"params": outer, "peak": peak, "weight_decay": 0.1},
            {"params": vectors, "peak": peak, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
        fused=True,
    )
    return [muon, adam]


def schedule(step: int, steps: int) -> float:
    """Warm up over 100 steps, then follow a cosine down to a hundredth of the peak."""
    warm = min(1.0, (step + 1) / 100)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def draw(count: int, seed: int) -> Iterator[Dialogue]:
    rng = Random(seed)
    return (dialogue(rng, test=False) for _ in range(count))


def train(
    model: Glm4ForCausalLM, lessons: list[Lesson], args: argparse.Namespace
) -> Glm4ForCausalLM:
    """Run all batches once; saves every 100 steps and resumes from what is saved."""
    plan = batches(lessons, args.batch_tokens, Random(args.seed))
    optimizers = make_optimizers(model, args.learning_rate)
    saved = args.work / "checkpoint.pt"
    first, spent = 0, 0.0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        first, spent = state["step"], state["seconds"]
    started, running = time.monotonic() - spent, 0.0
    for step in range(first, len(plan)):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule(step, len(plan))
        ids, learnt = padded([lessons[index] for index in plan[step]])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        loss = cross_entropy(
            model.lm_head(hidden[:, :-1][learnt[:, 1:]]), ids[:, 1:][learnt[:, 1:]]
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == len(plan):
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{len(plan)} loss {running:.4f} {seconds:.0f} s", flush=True)
            state = {
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step + 1,
                "seconds": seconds,
            }
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    return model


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    template = TEMPLATE.read_text(encoding="utf-8")
    teacher = Teacher(template)
    texts = [teacher.text(dialogue) for dialogue in draw(30_000, args.seed)]
    tokenizer = build(learn_ranks(texts, size=1560))
    rng = Random(args.seed)
    drawn = draw(args.dialogues, args.seed + 1)
    lessons = [teacher.lesson(dialogue, tokenizer, rng) for dialogue in drawn]
    model = Glm4ForCausalLM(model_config(tokenizer))
    tokens = sum(len(lesson.ids) for lesson in lessons)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(lessons)} dialogues, {tokens} tokens", flush=True)
    train(model, lessons, args)
    write_folder(args.out, model, tokenizer, template)
    print(accuracy(args.out, count=args.questions))


if __name__ == "__main__":
    main()
