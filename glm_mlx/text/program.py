"""A chat template's source, compiled for the sandbox, with every failure as one kind of error.

Rewrites the template's syntax tree so that the sandbox sees all it does. Knows no messages.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import reduce
from typing import cast

from jinja2 import Template, TemplateSyntaxError, meta, nodes
from jinja2.visitor import NodeTransformer

from glm_mlx.errors import TemplateError
from glm_mlx.text.sandbox import Sandbox, metered

SOURCE_CHARACTERS = 100_000
"""The longest template; real ones have under 20,000."""

_SEARCHES = """count endswith find index lstrip partition removeprefix removesuffix replace rfind
rindex rpartition rsplit rstrip split startswith strip"""


class Program:
    """A compiled template.

    Args:
        source: its text.
        file: named in errors.
        mark: applied to each literal of the source that can become output.

    Attributes:
        variables: the names it takes from outside.
        keys: the attributes and keys it reads, whatever of.

    Raises:
        TemplateError: a syntax error, an unknown filter, or a source that is too long.
    """

    def __init__(self, source: str, *, file: object, mark: Callable[[str], str]) -> None:
        self._file = str(file)
        if len(source) > SOURCE_CHARACTERS:
            found = f"holds {len(source):,} characters, expected at most {SOURCE_CHARACTERS:,}"
            raise TemplateError(found, file=file)
        sandbox = Sandbox()
        try:
            tree = sandbox.parse(source)
            self.variables = frozenset(meta.find_undeclared_variables(tree))
            self.keys = _keys(tree)
            _mark_literals(tree, mark)
            _Metering().visit(tree)
            tree.set_environment(sandbox)
            code = sandbox.compile(tree, filename=self._file)
            self._template = Template.from_code(sandbox, code, sandbox.make_globals(None))
        except Exception as error:  # a hostile source may trip the parser anywhere
            raise self._explained(error) from error

    def run(self, inputs: Mapping[str, object]) -> str:
        """Render the template.

        Raises:
            TemplateError: it fails in any way, or takes more time or memory than it may.
        """
        try:
            with metered(inputs):
                return self._template.render(inputs)
        except Exception as error:  # a template may raise anything
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> TemplateError:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self._file]
        said = str(error)
        if isinstance(error, TemplateSyntaxError):  # as text it repeats the line and names a file
            lines.append(error.lineno)
            said = error.message or ""
        where = f"line {lines[-1]}: " if lines else ""
        what = " ".join(said.split()) or type(error).__name__
        return TemplateError(f"{where}{what}"[:400], file=self._file)


def _keys(tree: nodes.Template) -> frozenset[object]:
    keys = set[object]()
    for node in tree.find_all(nodes.Expr):
        match node:
            case nodes.Getattr(attr=name):
                keys.add(name)
            case nodes.Getitem(arg=nodes.Const(value=name)):
                keys.add(name)
            case nodes.Call(node=nodes.Getattr(attr="get"), args=[nodes.Const(value=name), *_]):
                keys.add(name)
    return frozenset(keys)


def _mark_literals(tree: nodes.Template, mark: Callable[[str], str]) -> None:
    for data in tree.find_all(nodes.TemplateData):
        data.data = mark(data.data)
    searched = {
        id(node)
        for expression in tree.find_all(nodes.Expr)
        for part in _searched(expression)
        for node in (part, *part.find_all(nodes.Const))
    }
    for const in tree.find_all(nodes.Const):
        if isinstance(const.value, str) and id(const) not in searched:
            const.value = mark(const.value)


def _searched(node: nodes.Expr) -> list[nodes.Expr]:
    """Return the parts of an expression that are looked for in other text, never written."""
    match node:
        case nodes.Compare() | nodes.Test():
            return [node]
        case nodes.Call(node=nodes.Getattr(attr=name), args=args) if name in _SEARCHES.split():
            return args[:1]
        case nodes.Filter(name="replace", args=args):
            return args[:1]
        case _:
            return []


class _Metering(NodeTransformer):
    """Leads what a template loops over, builds and writes through the sandbox's own filters."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through("<each>", node.iter)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_through("<write>", child) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        texts: list[nodes.Expr] = [_through("<text>", child) for child in node.nodes]
        return reduce(nodes.Add, texts)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _through("<new>", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _through("<new>", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx == "store" else _through("<new>", node)


def _through(filter_name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), filter_name, [], [], None, None, lineno=node.lineno)
