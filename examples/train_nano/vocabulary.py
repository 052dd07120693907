"""A small tokenizer in GLM's construction: byte-level BPE, GLM's special tokens and prefix.

Ranks are learnt from the corpus; merges are then derived from the ranks as GLM's converters do.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from glm_mlx.text.ranks import PATTERN, SPECIAL_TOKENS

ROW_MULTIPLE = 64


def learn_ranks(texts: Iterable[str], size: int) -> list[str]:
    """Learn `size` byte-level tokens in rank order, the 256 bytes first, no two digits in one."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), *_pre_tokenizers()]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    vocabulary = learner.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def build(ranks: list[str]) -> Tokenizer:
    """Build the tokenizer from its ranks, as GLM's tokenizer.json files are built."""
    rank = {token: index for index, token in enumerate(ranks)}
    merges = []
    for token in ranks:
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [pair for pair in splits if pair[0] in rank and pair[1] in rank]
        merges += sorted(pairs, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    tokenizer = Tokenizer(models.BPE(vocab=rank, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_pre_tokenizers())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL_TOKENS])
    prefix = [(text, tokenizer.token_to_id(text)) for text in ("[gMASK]", "<sop>")]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="[gMASK]:0 <sop>:0 $A:0",
                pair="[gMASK]:0 <sop>:0 $A:0 $B:1",
                special_tokens=prefix,
            ),
        ]
    )
    return tokenizer


def padded_rows(tokenizer: Tokenizer) -> int:
    """Rows of the embedding: the vocabulary, filled up as in the published checkpoints."""
    return -(-tokenizer.get_vocab_size() // ROW_MULTIPLE) * ROW_MULTIPLE


def _pre_tokenizers() -> list[pre_tokenizers.PreTokenizer]:
    return [
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
