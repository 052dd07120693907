"""A template from a stranger renders as transformers would, or ends soon, its file named."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from glm_mlx.errors import TemplateError
from glm_mlx.text import Tokenizer, sandbox
from glm_mlx.text.program import Program

FILE = "some/chat_template.jinja"
INPUTS: dict[str, Any] = {"messages": [{"c": " hi ", "k": [{"c": "deep"}]}, {"c": "b"}], "x": "X"}


def run(source: str, inputs: dict[str, Any] = INPUTS) -> str:
    return Program(source, file=FILE, mark=lambda text: text).run(inputs)


RENDERED = [
    ("{{ 'a' ~ 1 ~ x }}", "a1X"),
    (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ m.c }}{% endfor %}",
        "1/2 hi 2/2b",
    ),
    ("{% for m in messages if m.k %}{{ m.c }}{% else %}none{% endfor %}", " hi "),
    ("{% for m in messages recursive %}{{ m.c }}{{ loop(m.k) if m.k }}{% endfor %}", " hi deepb"),
    ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
    ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    ("{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a }}", "1"),
    ("{% macro f(a, b='y') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(2, x) }}", "[1y][2X]"),
    ("{% set b %}<{{ x }}>{% endset %}{{ b }}{{ b|length }}", "<X>3"),
    (
        "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}"
        "{{ ns.a }}",
        "4",
    ),
    ("{% set a, b = (1, 2) %}{{ a + b }}{{ [a, b] + [3] }}", "3[1, 2, 3]"),
    ("{{ '%s-%d' % ('a', 3) }}{{ '{:,}'.format(3000) }}{{ 7 % 4 }}{{ 2 ** 5 }}", "a-33,000332"),
    ("{{ 'ab' * 2 }}{{ ','.join(['a', 'b']) }}{{ 'aXa'.replace('X', 'y') }}", "ababa,baya"),
    ("{{ 'a b'.split()[1] }}{{ ['a', 1]|join('+') }}{{ 'axa'|replace('x', 'b') }}", "ba+1aba"),
    ("{{ messages|join('|', attribute='c') }}", " hi |b"),
    ("{{ 'a\nb'|indent }}{{ 'a\nb'|indent(1, true) }}", "a\n    b a\n b"),
    ("{{ {'b': [1, {}], 'a': '天'}|tojson }}", '{"b": [1, {}], "a": "天"}'),
    ("{{ {'b': 1, 'a': 2}|tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
    ("{{ {'a': '天<'}|tojson(indent=2, ensure_ascii=true) }}", '{\n  "a": "\\u5929<"\n}'),
    ("{{ messages|map(attribute='c')|list }}", "[' hi ', 'b']"),
    ("{{ messages|selectattr('k')|list|length }}{{ x|safe ~ '<' }}{{ x|safe + '<' }}", "1X<X&lt;"),
    ("{{ '%s: %.2f'|format(x, 1.5) }}{{ '%(a)s'|format(a=1) }}", "X: 1.501"),
    ("{{ 2.55|round(1) }}{{ 2.1|round(0, 'ceil') }}{{ 1234|round(-2)|int }}", "2.53.01200"),
    ("{{ [1, 2.5]|sum }}{{ messages|map(attribute='c')|map('length')|sum(start=1) }}", "3.56"),
    ("{{ [{'n': 1}, {'n': 2}]|sum('n') }}{{ [[1], [2]]|sum(start=[]) }}", "3[1, 2]"),
    ("{{ missing }}{{ missing is defined }}{{ none }}{{ x is string }}", "FalseNoneTrue"),
    ("  {% if true %}\n  a\n  {% endif %}\nb\n\n", "  a\nb\n"),
    ("{{ strftime_now('%d')|length }}{{ dict(a=1).a }}{{ cycler('p', 'q').next() }}", "21p"),
    ("{{ messages[::-1][0].c }}{{ messages[0]['k'][0].c|upper }}{{ {}.get('z', 1) }}", "bDEEP1"),
]


@pytest.mark.parametrize(("source", "expected"), RENDERED)
def test_renders(source: str, expected: str) -> None:
    assert run(source) == expected


@pytest.mark.parity
@pytest.mark.parametrize(("source", "expected"), RENDERED)
def test_transformers_renders_the_same(source: str, expected: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    chats = [INPUTS["messages"]]
    rendered, _ = render_jinja_template(chats, chat_template=source, x=INPUTS["x"])
    assert rendered == [expected]


BROKEN = [
    ("\n{% if x %}", "line 2: Unexpected end of template"),
    ("{{ 'a'|center(10) }}", "line 1: No filter named 'center'"),
    ("{{ raise_exception('roles must alternate') }}", "line 1: refuses these messages: roles must"),
    ("\n\n{{ 1/0 }}", "line 3: division by zero"),
    ("{{ missing.attribute.again }}", "is undefined"),
    ("{% include 'x' %}", "no loader"),
    ("{% extends 'x' %}", "no loader"),
    ("{% import 'x' as x %}", "no loader"),
    ("{{ '\\ud800' }}", "writes a lone surrogate"),
    ("x" * 100_001, "holds 100,001 characters, expected at most 100,000"),
    ("{{ " + "(" * 20_000 + " }}", "recursion"),
    ("{{ " + "-" * 20_000 + "1 }}", "recursion"),
    ("{% if 1 %}" * 300 + "{% endif %}" * 300, "r"),
    ("{% for i in x %}" * 50 + "{% endfor %}" * 50, "too many statically nested blocks"),
]
UNSAFE = [
    ("{{ x.__class__ }}", "reads '__class__', which no template needs"),
    ("{{ x['__class__'] }}", "reads '__class__'"),
    ("{{ '{0.__class__}'.format(x) }}", "reads '__class__'"),
    ("{{ [1]|map(attribute='__class__')|list }}", "reads '__class__'"),
    ("{{ cycler.__init__.__globals__ }}", "reads '__init__'"),
    ("{{ self.__init__ }}", "reads '__init__'"),
    ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
    ("{{ messages[0].update(a=1) }}", "'update' of 'dict' object is unsafe"),
    ("{{ 'ab'.encode() }}", "'encode' of 'str' object is unsafe"),
    ("{{ namespace(__class__=1) }}", "names there may not start with _"),
    ("{% set ns = namespace() %}{% set ns.__x = 1 %}", "names there may not start with _"),
    ("{{ x|attr('__class__') }}", "No filter named 'attr'"),
    ("{{ dict.fromkeys('ab') }}", "no attribute 'fromkeys'"),
]
DOUBLING = "{% set ns = namespace(x='aa') %}{% for i in range(99) %}"
HUGE = [
    ("{{ 'x' * (10**9) }}", "builds more than"),
    ("{{ (10**9) * 'x' }}", "builds more than"),
    ("{{ [0] * (10**9) }}", "builds more than"),
    ("{{ 10 ** (10**9) }}", "builds more than"),
    ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ("{{ range(99999)|list|length }}", "builds more than"),
    ("{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaa{% endfor %}", "writes more than"),
    (DOUBLING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "builds more than"),
    (DOUBLING + "{% set ns.x = ns.x + ns.x %}{% endfor %}", "builds more than"),
    (DOUBLING + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}", "writes more than"),
    (DOUBLING + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}", "builds more than"),
    (DOUBLING + "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ ns.x }}", "builds more than"),
    (DOUBLING + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}", "builds more than"),
    (DOUBLING + "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}", "builds more than"),
    (DOUBLING + "{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}", "builds more than"),
    ("{% macro m() %}{{ m(varargs, varargs) }}{% endmacro %}{{ m(1) }}", "builds more than"),
    ("{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ("{{ '%999999999d' % 1 }}", "formats to a width beyond reason"),
    ("{{ '%*d' % (99999999, 1) }}", "formats to a width beyond reason"),
    ("{{ '{:999999999}'.format(1) }}", "formats to a width beyond reason"),
    ("{{ '{:{}}'.format(1, 999999999) }}", "formats to a width beyond reason"),
    ("{{ '%999999999d'|format(1) }}", "formats to a width beyond reason"),
    ("{{ ('%(a)s' * 9000)|format(a='x' * 900000) }}", "builds more than"),
    ("{{ ('%(a)s' * 9000) % {'a': 'x' * 900000} }}", "builds more than"),
    ("{{ ('{0}' * 9000).format('x' * 900000) }}", "builds more than"),
    ("{{ 1|round(-10**9) }}", "rounds to more than 400 places"),
    ("{{ 1|round(10**9, 'ceil') }}", "rounds to more than 400 places"),
    ("{{ range(99999)|map(attribute='x', default=[0] * 9999)|sum(start=[]) }}", "builds more than"),
    ("{{ strftime_now('%999999d') }}", "formats to a width beyond reason"),
    ("{{ x.zfill(10**9) }}", "'zfill' of 'str' object is unsafe"),
    ("{{ (1).to_bytes(10**9) }}", "'to_bytes' of 'int' object is unsafe"),
    ("{{ ('a' * 900000).replace('a', 'b' * 900000) }}", "builds more than"),
    ("{{ ('a' * 900000)|replace('a', 'b' * 900000) }}", "builds more than"),
    ("{{ ('b' * 900000).join('a' * 9000) }}", "builds more than"),
    ("{{ ('a' * 9000)|join('b' * 900000) }}", "builds more than"),
    ("{{ range(99999)|map(attribute='x', default='b' * 900000)|join }}", "builds more than"),
    ("{{ range(99999)|map('string')|map('replace', '1', 'b' * 90000)|list }}", "builds more than"),
    ("{{ {'a': 1}|tojson(indent=10**9) }}", "builds more than"),
    ("{{ 'a'|indent(10**9) }}", "builds more than"),
    ("{{ ('a' * 900000).split('a') }}", "builds more than"),
    ("{{ lipsum(n=10**9) }}", "'lipsum' is undefined"),
]


@pytest.mark.parametrize(("source", "message"), [*BROKEN, *UNSAFE, *HUGE])
def test_ends_soon_and_names_the_file(
    open_folder: Callable[..., Tokenizer], source: str, message: str
) -> None:
    tokenizer = open_folder(source)
    start = time.thread_time()
    with pytest.raises(TemplateError) as caught:
        tokenizer.encode_chat([{"role": "user", "content": "hi"}], x="X")
    assert time.thread_time() - start < sandbox.CPU_SECONDS
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "chat_template.jinja" in str(caught.value)
    assert caught.value.exit_code == 3


SLOW = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% set y = x ~ i %}{% for j in range(99999) if j < 0 %}{% endfor %}"
    "{% endfor %}",
    "{% macro f(n) %}{% if n %}{% set a = f(n - 1) %}{% set b = f(n - 1) %}{% endif %}"
    "{% endmacro %}{{ f(99) }}",
    "{% set ns = namespace(x=('a',)) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}"
    "{% endfor %}{{ {ns.x: 1} }}",
    "{% for i in range(99999) %}{% set y = range(9999)|map('string')|select|list|sort %}"
    "{% endfor %}",
]


def test_an_error_names_no_file_but_the_template() -> None:
    for source in ("{{ 'a'|center(10) }}", "{% if x %}", "{{ 1 +"):
        with pytest.raises(TemplateError) as caught:
            run(source)
        assert "File" not in str(caught.value)
        assert "introspection" not in str(caught.value)
        assert str(caught.value).count("line 1") == 1


@pytest.mark.parametrize("source", SLOW)
def test_time_is_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 0.2)
    start = time.thread_time()
    with pytest.raises(TemplateError, match=r"runs for more than 0\.2 seconds|on its way"):
        run(source)
    assert time.thread_time() - start < 0.6


def test_two_seconds_are_the_rule() -> None:
    start = time.thread_time()
    with pytest.raises(TemplateError, match="runs for more than 2 seconds"):
        run(SLOW[0])
    assert 1.9 < time.thread_time() - start < 2.5


def test_memory_is_bounded() -> None:
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for source, _ in HUGE:
        with pytest.raises(TemplateError):
            run(source)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert after - before < 256 << 20


def test_long_conversations_and_contents_have_room() -> None:
    source = (
        "{% for m in messages %}{% set c = m.content|trim %}{% if loop.index0 < messages|length %}"
        "<|{{ m.role }}|>{{ c.split('</think>')[-1].replace('a', 'bb') }}{% endif %}{% endfor %}"
    )
    message = {"role": "user", "content": "a" * 1000}
    assert len(run(source, {"messages": [message] * 1000})) == 1000 * (2000 + 8)
    assert len(run(source, {"messages": [{**message, "content": "a" * 3_000_000}]})) == 6_000_008


def test_each_rendering_has_its_own_meter() -> None:
    program = Program("{{ 'a' * 900000 }}", file=FILE, mark=lambda text: text)
    assert {len(program.run({})) for _ in range(100)} == {900_000}
