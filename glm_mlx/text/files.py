"""The tokenizer files of a model folder, for another layout: same ids, same chat format.

`tokenizer.json` for Hugging Face's tools, `tokenizer.model` for ChatGLM's own code. Knows file
contents; writes nothing to disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from glm_mlx.errors import TemplateError, TokenizerError
from glm_mlx.jsonfile import MAX_BYTES, parse_json, read_json_object
from glm_mlx.modelfile import find_file, read_file
from glm_mlx.text.ranks import read_ranks, write_ranks
from glm_mlx.text.template import find_sources
from glm_mlx.text.tokenizer_json import from_ranks, look_through, to_ranks
from glm_mlx.text.vocabulary import (
    MAX_TOKENIZER_BYTES,
    AddedToken,
    added_beside_ranks,
    check_bytes,
    check_size,
    join_added,
    missing_vocabulary,
)

_END = "<|endoftext|>"
_REMOTE_CLASS = "ChatGLM4Tokenizer"  # of tokenization_chatglm.py in the 2024 repositories

# Of tokenizer_config.json: what names code, or a file on somebody's disk.
_NOT_COPIED = {"auto_map", "backend", "is_local", "name_or_path", "tokenizer_file", "vocab_file"}
_REMOTE_KEYS = ("clean_up_tokenization_spaces", "eos_token", "model_max_length", "pad_token")


def tokenizer_files(
    folder: Path, *, layout: str, family: str, vocab_size: int
) -> tuple[dict[str, bytes], dict[str, int]]:
    """Return the tokenizer files of a layout by name, and the id of each added token.

    What fits the layout is copied byte for byte. A chat format that the folder leaves to this
    package (see `find_sources`) is written out.

    Args:
        layout: chatglm, for `tokenizer.model`, or another, for `tokenizer.json`.
        family: of the source.
        vocab_size: rows of the model's embedding.

    Raises:
        TokenizerError: a file is missing, damaged, of another model, or cannot be expressed in
            the layout.
        TemplateError: a chat template is not text.
    """
    settings_file = find_file(folder, "tokenizer_config.json", error=TokenizerError)
    settings = read_json_object(settings_file, error=TokenizerError) if settings_file else {}
    files, added = _vocabulary_file(folder, settings, layout=layout, vocab_size=vocab_size)
    special_map = read_file(
        folder, "special_tokens_map.json", error=TokenizerError, max_bytes=MAX_BYTES
    )
    if special_map is not None:
        parse_json(special_map, file=folder / "special_tokens_map.json", error=TokenizerError)
        files["special_tokens_map.json"] = special_map
    ids = {token.text: token.id for token in added.values()}
    sources = find_sources(folder, settings, family=family, specials=ids)
    templates = {name: source.text for name, source in sources.items()}
    if layout == "chatglm":
        settings = _remote_settings(settings, added)
    else:
        settings = _fast_settings(settings, ids)
        if templates.keys() == {"default"}:
            files["chat_template.jinja"] = _template_file(folder, templates.pop("default"))
    settings |= _template_setting(templates)
    files["tokenizer_config.json"] = json.dumps(settings, indent=2).encode() + b"\n"
    return files, ids


def _vocabulary_file(
    folder: Path, settings: Mapping[str, object], *, layout: str, vocab_size: int
) -> tuple[dict[str, bytes], dict[int, AddedToken]]:
    """Take the vocabulary from the file that the loader reads, too: the fast one, if there."""
    file = folder / "tokenizer.json"
    raw = read_file(folder, file.name, error=TokenizerError, max_bytes=MAX_TOKENIZER_BYTES)
    if raw is not None:
        listed, size = look_through(raw, file=file)
        added = join_added(listed, settings)
        check_size(max([size, *(index + 1 for index in added)]), vocab_size, folder)
        if layout != "chatglm":
            return {"tokenizer.json": raw}, added
        data = parse_json(raw, file=file, error=TokenizerError)
        return {"tokenizer.model": write_ranks(to_ranks(data, file=file))}, added
    file = find_file(folder, "tokenizer.model", error=TokenizerError) or missing_vocabulary(folder)
    ranks = read_ranks(file)
    check_bytes(ranks, file)
    added = added_beside_ranks(ranks, settings)
    check_size(max([len(ranks), *(index + 1 for index in added)]), vocab_size, folder)
    if layout != "chatglm":
        return {"tokenizer.json": from_ranks(ranks, added, file=file)}, added
    return {"tokenizer.model": file.read_bytes()}, added


def _fast_settings(settings: Mapping[str, object], ids: Mapping[str, int]) -> dict[str, object]:
    kept = {key: value for key, value in settings.items() if key not in _NOT_COPIED}
    kept.pop("chat_template", None)
    ends = {"eos_token": _END, "pad_token": _END} if _END in ids else {}
    return {
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        **ends,
        **kept,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _remote_settings(
    settings: Mapping[str, object], added: Mapping[int, AddedToken]
) -> dict[str, object]:
    """As the 2024 repositories have them: their code takes every other key for its own."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {
        "auto_map": {"AutoTokenizer": [f"tokenization_chatglm.{_REMOTE_CLASS}", None]},
        "added_tokens_decoder": {
            str(i): {"content": added[i].text, **flags, "special": added[i].special}
            for i in sorted(added)
        },
        "additional_special_tokens": [added[i].text for i in sorted(added) if added[i].special],
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": _END,
        "pad_token": _END,
        "padding_side": "left",
        "remove_space": False,
        **{key: settings[key] for key in _REMOTE_KEYS if key in settings},
        "tokenizer_class": _REMOTE_CLASS,
    }


def _template_setting(templates: Mapping[str, str]) -> dict[str, object]:
    if not templates:
        return {}
    if templates.keys() == {"default"}:
        return {"chat_template": templates["default"]}
    named = [{"name": name, "template": text} for name, text in templates.items()]
    return {"chat_template": named}


def _template_file(folder: Path, template: str) -> bytes:
    raw = read_file(folder, "chat_template.jinja", error=TemplateError, max_bytes=MAX_BYTES)
    try:
        return template.encode() if raw is None else raw
    except UnicodeEncodeError as cause:
        raise TemplateError("the chat template is no text: lone surrogates", file=folder) from cause
