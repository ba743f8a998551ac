"""The source of a norm type: whether two runs were computed by the same code."""

import ast
import hashlib
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator

from normlab.norms.base import Norm, NormConfig


def source_hash(kind: type[Norm]) -> str | None:
    """SHA-256 of what computes a norm, or None where it has no file (a cell of a notebook).

    That is its class, its config's, and the classes and functions of their modules that these use.
    Base classes of all norms, comments, docstrings, cards and references are left out.
    """
    classes = [*kind.__mro__, *kind.Config.__mro__]
    modules: dict[str, list[str]] = {}
    for each in classes:
        if issubclass(each, Norm | NormConfig) and each not in (Norm, NormConfig):
            modules.setdefault(each.__module__, []).append(each.__name__)
    digest = hashlib.sha256()
    for name, wanted in modules.items():
        try:
            text = inspect.getsource(sys.modules[name])
        except (OSError, TypeError):
            return None
        digest.update("\n".join(_lines(text, wanted)).encode())
    return digest.hexdigest()


def _lines(text: str, wanted: list[str]) -> Iterator[str]:
    """The lines of a module that some of its names depend on, as they stand but for their ends."""
    tree = ast.parse(text)
    found = {name: node for node in tree.body for name in _defines(node)}
    needed, left = set[str](), list(wanted)
    while left:
        name = left.pop()
        if name in found and name not in needed:
            needed.add(name)
            left += [n.id for n in ast.walk(found[name]) if isinstance(n, ast.Name)]
    nodes = {id(found[name]): found[name] for name in needed}
    kept = set[int]()
    for node in nodes.values():
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)])
        kept |= {*range(first, (node.end_lineno or first) + 1)} - _left_out(node)
    for number, line in enumerate(_without_comments(text), start=1):
        if number in kept and line.strip():
            yield line.rstrip()


def _defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and _stored(n)]
    return []


def _stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _left_out(node: ast.stmt) -> set[int]:
    """Numbers of the lines below a node that compute nothing: docstrings, card, reference."""
    left = set[int]()
    for inner in ast.walk(node):
        body = getattr(inner, "body", None)
        for one in body if isinstance(body, list) else ():
            text = isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)
            if text or {"card", "reference"} & set(_defines(one)):
                above = [one.lineno, *(d.lineno for d in getattr(one, "decorator_list", []))]
                left |= {*range(min(above), (one.end_lineno or one.lineno) + 1)}
    return left


def _without_comments(text: str) -> list[str]:
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return lines
