"""Whether two texts of generated code say the same program, whatever its values are called."""

from __future__ import annotations

import ast
from typing import Any


def same_code(one: str, other: str) -> bool:
    """Whether two texts differ in names of local values, in annotations and in comments alone.

    >>> same_code("def f(x):\\n    y : int = x + 1  # more\\n    return y", "def f(x):\\n    z = x + 1\\n    return z")
    True
    >>> same_code("def f(x, y):\\n    return x - y", "def f(y, x):\\n    return x - y")
    False
    """
    if one == other:
        return True
    try:
        return _plain(one) == _plain(other)
    except SyntaxError:  # a function that rewrites code may write anything
        return False


# Where these are, a name is not the same value throughout.
_SCOPES = (ast.Lambda, ast.Try, ast.Global, ast.Nonlocal, ast.ClassDef, ast.comprehension, ast.NamedExpr)


def _plain(code: str) -> str:
    tree = ast.parse(code)
    nodes = list(ast.walk(tree))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    kept = {node.arg for node in nodes if isinstance(node, ast.arg)}
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    simple = len(functions) == 1 and not any(isinstance(node, _SCOPES) for node in nodes)
    return ast.dump(_Plain(stored - kept if simple else set()).visit(tree))


class _Plain(ast.NodeTransformer):
    """Numbers the local names in the order in which they are met, and drops annotations."""

    def __init__(self, names: set[str]) -> None:
        self._names, self._numbers = names, dict[str, str]()

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self._names:
            node.id = self._numbers.setdefault(node.id, f"local {len(self._numbers)}")
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if node.value is None:
            return None
        return self.visit(ast.Assign(targets=[node.target], value=node.value))
