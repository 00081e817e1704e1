"""Values nested in the containers that torch's pytree knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from passes.process.torch_private import pytree

T = TypeVar("T")


def tree_leaves_only(kind: type[T], tree: object, is_leaf: Callable[[object], bool] | None = None) -> list[T]:
    """The leaves of `tree` that are of class `kind`, in the order of `pytree.tree_leaves`; `is_leaf` as there."""
    return [leaf for leaf in pytree.tree_leaves(tree, is_leaf) if isinstance(leaf, kind)]


def holds_images(value: object) -> bool:
    """Whether a value is a list of single images (channels, height, width), as detectors take them."""
    return isinstance(value, list) and bool(value) and all(map(_is_image, value))


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 3 and value.shape[0] in (1, 3)


def image_count(tree: object) -> int:
    """How many single images, a sample each, the first list of images in `tree` holds; 0 without such a list."""
    return next(map(len, _image_lists(tree)), 0)


def listed_images(tree: object) -> set[int]:
    """The ids of the images that stand in lists in `tree`."""
    return {id(image) for images in _image_lists(tree) for image in images}


def _image_lists(tree: object) -> list[list[Tensor]]:
    return tree_leaves_only(list, tree, holds_images)


def with_another_image(tree: Any) -> Any:
    """`tree` with an entry more, made of the last one, in each list that holds tensors for each of its images."""
    count = image_count(tree)

    def of_each(value: object) -> bool:
        return isinstance(value, list) and len(value) == count and bool(tree_leaves_only(Tensor, value))

    def longer(value: Any) -> Any:
        if not of_each(value):
            return value
        turned = holds_images(value)
        last = pytree.tree_map_only(Tensor, lambda tensor: tensor.flip(-1) if turned else tensor.clone(), value[-1])
        return [*value, last]

    return pytree.tree_map(longer, tree, is_leaf=of_each)
