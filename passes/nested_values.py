"""Values nested in the containers that torch's pytree knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from passes.process.torch_private import pytree

T = TypeVar("T")


def tree_leaves_only(kind: type[T], tree: object, is_leaf: Callable[[object], bool] | None = None) -> list[T]:
    """The leaves of `tree` that are of class `kind`, in the order of `pytree.tree_leaves`; `is_leaf` as there."""
    return [leaf for leaf in pytree.tree_leaves(tree, is_leaf) if isinstance(leaf, kind)]
