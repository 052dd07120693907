"""The byte alphabet of byte-level BPE: each byte as one printable character (GPT-2's table)."""

from __future__ import annotations

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _alphabet() -> str:
    stand_ins = iter(range(0x100, 0x200))
    return "".join(chr(b if b in _PRINTABLE else next(stand_ins)) for b in range(256))


ALPHABET = _alphabet()
"""Character `i` stands for byte `i`."""

_TO_CHARACTER = dict(enumerate(ALPHABET))
_TO_BYTE = {ord(character): byte for byte, character in enumerate(ALPHABET)}


def to_token(data: bytes) -> str:
    """Spell bytes in the alphabet."""
    return data.decode("latin-1").translate(_TO_CHARACTER)


def to_bytes(token: str) -> bytes:
    """Read a token spelled in the alphabet back as bytes; the inverse of `to_token`."""
    return token.translate(_TO_BYTE).encode("latin-1")
