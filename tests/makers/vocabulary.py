"""A tiny byte-level vocabulary with GLM's special tokens, in both file formats GLM ships.

Both files hold the same ranks, so `tokenizer.model` read by us must equal `tokenizer.json`.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIALS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
STOPS = ("<|endoftext|>", "<|user|>", "<|observation|>")
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = (" the", "hello", "in", "er", "12", "123", "\n\n", "你好", "天气", "👋", "😀")


def byte_characters() -> dict[int, str]:
    """Map each byte to the printable character byte-level BPE files write for it (GPT-2's table).

    The order of the mapping is GPT-2's too: printable bytes first, so rank 0 is `!`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    rest = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def make_ranks() -> list[bytes]:
    """Return every token's bytes in rank order: 256 single bytes, then words grown byte by byte."""
    ranks = [bytes([byte]) for byte in byte_characters()]
    for text in (word.encode() for word in _WORDS):
        for stop in range(2, len(text) + 1):
            if text[:stop] not in ranks:
                ranks.append(text[:stop])
    return ranks


def special_ids() -> dict[str, int]:
    """Return the id of each special token: they follow the ranks, in GLM's order."""
    start = len(make_ranks())
    return {token: start + i for i, token in enumerate(SPECIALS)}


def stop_ids() -> list[int]:
    """Return the ids GLM always stops on."""
    ids = special_ids()
    return [ids[token] for token in STOPS]


def make_tokenizer() -> Tokenizer:
    """Build the fast tokenizer (the recipe of transformers' `TikTokenConverter`)."""
    characters = byte_characters()
    ranks = {token: rank for rank, token in enumerate(make_ranks())}

    def spell(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    merges: list[tuple[str, str]] = []
    for token in ranks:
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(left, right) for left, right in halves if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(spell(left), spell(right)) for left, right in known]
    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIALS]
    )
    ids = special_ids()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="[gMASK]:0 <sop>:0 $A:0",
                pair="[gMASK]:0 <sop>:0 $A:0 $B:1",
                special_tokens=[(token, ids[token]) for token in ("[gMASK]", "<sop>")],
            ),
        ]
    )
    return tokenizer


def write_tokenizer(folder: Path, dialect: str, chat_template: str) -> None:
    """Write the tokenizer files of a dialect: ranks and remote-code names for `chatglm`."""
    settings: dict[str, object] = {
        "added_tokens_decoder": {
            str(i): {"content": token, "special": True} for token, i in special_ids().items()
        },
        "additional_special_tokens": list(SPECIALS),
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIALS[0],
        "pad_token": SPECIALS[0],
        "padding_side": "left",
    }
    if dialect == "chatglm":
        lines = [f"{base64.b64encode(t).decode()} {rank}" for rank, t in enumerate(make_ranks())]
        (folder / "tokenizer.model").write_text("\n".join(lines) + "\n", encoding="ascii")
        remote = "tokenization_chatglm.ChatGLM4Tokenizer"
        settings |= {
            "tokenizer_class": "ChatGLM4Tokenizer",
            "auto_map": {"AutoTokenizer": [remote, None]},
            "chat_template": chat_template,
        }
    else:
        make_tokenizer().save(str(folder / "tokenizer.json"))
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    text = json.dumps(settings, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
