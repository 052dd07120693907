"""Where a chat template that nobody has to trust runs: jinja2's sandbox, time and memory bounded.

The invariant: no value in a template weighs more than a limit that follows from its inputs, and
nothing runs on without passing the clock. Knows no messages, no tokens and no files.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import partial, reduce, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_format, do_indent, do_round, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_environment

CPU_SECONDS = 2.0
"""Time one rendering may take."""
SPARE_CHARACTERS = 1_000_000
"""What a template may write beyond eight times its inputs."""

# Chat templates need no more than these. Most of what jinja2 and Python have besides builds
# something huge from a small argument: center, ljust, zfill, batch, lipsum ...
_FILTERS = """abs capitalize count d default dictsort e escape first float forceescape groupby int
items last length list lower map max min reject rejectattr reverse safe select selectattr sort
string title trim truncate unique upper urlencode wordcount"""
_METHODS = """capitalize casefold copy count endswith find format get index isalnum isalpha isascii
isdecimal isdigit islower isnumeric isspace istitle isupper items join keys lower lstrip partition
removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines
startswith strip swapcase title upper values"""
_DECIMALS = 400  # more than a double has
_WIDE = re.compile(r"\d{4}|\*|:[^}]*\{")  # a width beyond reason, or one that a value supplies


class Refused(jinja2.TemplateRuntimeError):
    """The template asks for more than the sandbox gives, or refuses its input itself."""


class _Meter:
    """What one rendering may still use."""

    def __init__(self, inputs: object) -> None:
        self.limit = SPARE_CHARACTERS + 8 * _weight(inputs, limit=2**62)
        self._work_left = 64 * self.limit
        self._output_left = self.limit
        self._deadline = time.thread_time() + CPU_SECONDS

    def tick(self) -> None:
        if time.thread_time() > self._deadline:
            raise Refused(f"runs for more than {CPU_SECONDS:g} seconds")

    def bound(self, characters: int) -> None:
        if characters > self.limit:
            raise Refused(f"builds more than {self.limit:,} characters at once")

    def hold(self, value: Any) -> Any:
        """Let a new value into the template."""
        weight = _weight(value, self.limit)
        self.bound(weight)
        self._work_left -= weight
        if self._work_left < 0:
            raise Refused(f"builds more than {64 * self.limit:,} characters on its way")
        self.tick()
        return value

    def write(self, text: str) -> str:
        self._output_left -= len(text)
        if self._output_left < 0:
            raise Refused(f"writes more than {self.limit:,} characters")
        return text


_METER: ContextVar[_Meter] = ContextVar("_METER")


@contextmanager
def metered(inputs: object) -> Iterator[None]:
    """Give the renderings in this block the time and memory that their inputs justify."""
    token = _METER.set(_Meter(inputs))
    try:
        yield
    finally:
        _METER.reset(token)


def _weight(value: object, limit: int) -> int:
    """Count the characters in `value`, 16 more for each element; stop counting over `limit`."""
    total, todo = 0, [value]
    while todo and total <= limit:
        item = todo.pop()
        if isinstance(item, str | range):
            total += len(item)
        elif isinstance(item, int):
            total += item.bit_length() // 8
        elif isinstance(item, Mapping):
            total += 16 * len(item)
            todo += item.keys()
            todo += item.values()
        elif isinstance(item, list | tuple | set):
            total += 16 * len(item)
            todo += item
    return total


# The filters and functions a template calls: jinja2's own, metered, and ours where the original
# could explode.


def _metered(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return _METER.get().hold(function(*args, **kwargs))

    return run


def _same(value: Any) -> Any:
    return value


def _text(value: object) -> str:
    return str(value)


def _write(value: object) -> str:
    return _METER.get().write(str(value))


def _each(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _METER.get().tick()
        yield item


def _join_texts(separator: str, texts: Iterable[str]) -> str:
    meter = _METER.get()
    held = [meter.hold(text) for text in texts]
    meter.bound(len(separator) * len(held))
    return separator.join(held)


@pass_environment
def _join(env: jinja2.Environment, value: Any, d: str = "", attribute: Any = None) -> str:
    items = value if attribute is None else map(make_attrgetter(env, attribute), value)
    return _join_texts(d, map(str, items))


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    _METER.get().bound(text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _METER.get().bound((text.count("\n") + 1) * _columns(width))
    return do_indent(text, width, first, blank)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    meter, chunks, written = _METER.get(), [], 0
    meter.bound(1000 * _columns(indent or 0))  # a line at the deepest nesting Python allows
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    for chunk in _each(encoder.iterencode(value)):
        written += len(chunk)
        meter.bound(written)
        chunks.append(chunk)
    return "".join(chunks)


def _columns(indent: int | str) -> int:
    return indent if isinstance(indent, int) else len(indent)


def _check_widths(form: str) -> None:
    if _WIDE.search(form):
        raise Refused(f"formats to a width beyond reason: {form[:40]!r}")


def _check_form(form: str, opening: str, values: object) -> None:
    """Refuse a form whose fields, each spelled `opening`, could repeat large values too often."""
    _check_widths(form)
    meter = _METER.get()
    meter.bound(form.count(opening) * _weight(values, meter.limit))


def _format(form: object, *args: Any, **kwargs: Any) -> str:
    _check_form(str(form), "%(", kwargs)
    return do_format(str(form), *args, **kwargs)


def _round(value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > _DECIMALS:
        raise Refused(f"rounds to more than {_DECIMALS} places")
    return do_round(value, precision, method)


@pass_environment
def _sum(env: jinja2.Environment, items: Any, attribute: Any = None, start: Any = 0) -> Any:
    parts = items if attribute is None else map(make_attrgetter(env, attribute), items)
    hold = _METER.get().hold
    return reduce(lambda total, part: hold(total + part), parts, start)


def _strftime_now(form: str) -> str:
    _check_widths(form)
    return datetime.now().strftime(form[:1000])


def _raise_exception(message: str) -> None:
    raise Refused(f"refuses these messages: {message}")


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class _Namespace(Namespace):
    """Takes no name with an underscore, and never spells out what it holds."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        Namespace.__init__(self)
        for name, value in dict(*rest, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise Refused(f"sets {name!r} on a namespace; names there may not start with _")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


class _Generation(Extension):
    """`{% generation %}` marks the assistant's part for training; here, a plain scope."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2 as transformers sets it up, with the meter on every value that is made.

    Filters named `<each>`, `<new>`, `<text>` and `<write>`, which no source can spell, let a
    rewritten syntax tree meter loops, literals, `~` and output.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))
    _methods = frozenset(_METHODS.split())

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # folding constants would run them before there is a meter
            extensions=[_Generation, loopcontrols],
        )
        ours = {"join": _join, "replace": _replace, "indent": _indent, "tojson": _tojson}
        ours |= {"format": _format, "round": _round, "sum": _sum}
        ours |= {"<new>": _same, "<text>": _text}
        filters = {name: self.filters[name] for name in _FILTERS.split()} | ours
        self.filters = {name: _metered(function) for name, function in filters.items()}
        self.filters |= {"<each>": _each, "<write>": _write}
        del self.globals["lipsum"]
        self.globals |= {
            "dict": _dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | int | float | list | tuple | Mapping):
            return attr in self._methods
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        if attribute.startswith("_"):
            raise SecurityError(f"reads {attribute!r}, which no template needs")
        return super().unsafe_undefined(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _METER.get()
        whole = isinstance(left, int), isinstance(right, int)
        if operator == "**" and all(whole):
            meter.bound(left.bit_length() * right)
        elif operator == "*" and any(whole):
            value, times = (right, left) if whole[0] else (left, right)
            meter.bound(_weight(value, meter.limit) * times)
        elif operator == "%" and isinstance(left, str):
            _check_form(left, "%(", right)
        return meter.hold(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = _METER.get()
        meter.bound(_weight((args, kwargs), meter.limit))
        method = getattr(obj, "__wrapped__", obj)  # jinja2 wraps str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            match method.__name__:
                case "join":
                    obj = partial(_join_texts, text)
                case "replace":
                    obj = partial(_replace, text)
                case "format" | "format_map":
                    _check_form(text, "{", (args, kwargs))
        return meter.hold(super().call(context, obj, *args, **kwargs))
