"""Measures: how large each block of a gradient tree is, and the way back from norms to a tree."""

from collections.abc import Callable, Sequence
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice
from novoclip.blocks import NORMS, Layout, accumulation_dtype, block_norms, rescale_leaves

PER = ("tree", "tensor", "unit", "element")

Axes = int | Sequence[int]
NamedLeaf = tuple[str, jax.Array]


class Measure(NamedTuple):
    """Two functions that turn a tree into the norms of its blocks, and back.

    Attributes:
      norms: `norms(tree)`: a scalar, or one vector over all blocks, in float32 (float64
        if any leaf is); with `elementwise`, the tree of absolute values.
      rescale: `rescale(tree, old, new)`: the tree whose blocks, of norms `old`, have been
        multiplied by one factor each so that their norms are `new`. Structure, shapes and
        dtypes stay. A block whose `new` is 0 becomes zeros, even if it held NaN.
      elementwise: whether each number is a block of its own.
    """

    norms: Callable[[optax.Updates], Any]
    rescale: Callable[[optax.Updates, Any, Any], optax.Updates]
    elementwise: bool = False


def resolve_measure(per: str | Measure, norm: str = "l2") -> Measure:
    """Return the Measure that a rule's `per=` and `norm=` name.

    Args:
      per: "tree" (one block), "tensor" (one block a leaf), "unit" (one block an output
        unit: every axis but the last is reduced, and a leaf of one axis or none is one
        block), "element" (each number), or a Measure, which brings its own norm.
      norm: "l1", "l2", "max" or "rms" of the numbers in a block.

    Returns:
      The Measure.

    Raises:
      TypeError: if `per` is neither a string nor a Measure.
      ValueError: if a name is unknown, or `norm` is given beside a Measure.

    Example:
      >>> import jax.numpy as jnp
      >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
      >>> print(resolve_measure("tree").norms(gradients))
      13.0
      >>> print(resolve_measure("tensor", "max").norms(gradients))
      [ 4. 12.]
    """
    if isinstance(per, Measure):
        if norm != "l2":
            msg = f"norm={norm!r} has no effect beside a Measure; pass it to groups() or units()"
            raise ValueError(msg)
        return per
    check_choice("per", per, PER)
    check_choice("norm", norm, NORMS)
    if per == "element":
        return Measure(_absolute_values, _replace_absolute_values, elementwise=True)
    if per == "unit":
        return units(_leading_axes, norm=norm)
    if per == "tensor":
        return _measure(lambda leaves: Layout(_each(leaves), _all_axes(leaves), "stack"), norm)
    return _measure(lambda leaves: Layout((0,) * len(leaves), _all_axes(leaves), "scalar"), norm)


def groups(label_of: Callable[[str, jax.Array], str], *, norm: str = "l2") -> Measure:
    """Measure one block for each label.

    Args:
      label_of: `label_of(path, leaf)` names a leaf's group; `path` reads "a/b/kernel".
      norm: "l1", "l2", "max" or "rms" of all the numbers in a group.

    Returns:
      A Measure whose norms are one vector, in the order in which labels first occur.

    Raises:
      ValueError: if `norm` is unknown.
      TypeError: if `label_of` is not a function, or returns something that is no string.

    Example:
      >>> import jax.numpy as jnp
      >>> gradients = {"attention": {"k": jnp.array([3.0]), "q": jnp.array([4.0])}, "head": jnp.array([1.0])}
      >>> print(groups(lambda path, leaf: path.split("/")[0]).norms(gradients))
      [5. 1.]
    """
    check_choice("norm", norm, NORMS)
    if not callable(label_of):
        msg = f"label_of must be a function of (path, leaf); got {label_of!r}"
        raise TypeError(msg)

    def layout(leaves: list[NamedLeaf]) -> Layout:
        labels = [label_of(path, leaf) for path, leaf in leaves]
        for label, (path, _) in zip(labels, leaves, strict=True):
            if not isinstance(label, str):
                msg = f"label_of must return a string; got {label!r} for {path!r}"
                raise TypeError(msg)
        order = list(dict.fromkeys(labels))
        return Layout(tuple(order.index(label) for label in labels), _all_axes(leaves), "stack")

    return _measure(layout, norm)


def units(axes: Axes | Callable[[str, jax.Array], Axes], *, norm: str = "l2") -> Measure:
    """Measure one block for each slice that is left of a leaf when `axes` are reduced.

    Args:
      axes: the axes that norms are taken over, or a function `axes(path, leaf)` that
        returns them. For an attention kernel of shape (features, heads, head size), 0
        makes a unit of each column, and (0, 2) of each head.
      norm: "l1", "l2", "max" or "rms" of the numbers in a unit.

    Returns:
      A Measure whose norms are one vector, leaf after leaf.

    Raises:
      TypeError: if `axes` are no integers.
      ValueError: if `norm` is unknown, or a leaf lacks such an axis.

    Example:
      >>> import jax.numpy as jnp
      >>> print(units(0).norms({"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]])}))
      [5. 1.]
    """
    check_choice("norm", norm, NORMS)
    fixed = () if callable(axes) else _integers(axes)

    def reduced(path: str, leaf: jax.Array) -> tuple[int, ...]:
        listed = _integers(axes(path, leaf)) if callable(axes) else fixed
        if any(not -leaf.ndim <= axis < leaf.ndim for axis in listed):
            msg = f"axes={listed} are not all axes of {path!r}, which has shape {leaf.shape}"
            raise ValueError(msg)
        return tuple(sorted({axis % leaf.ndim for axis in listed}))

    def layout(leaves: list[NamedLeaf]) -> Layout:
        return Layout(_each(leaves), tuple(reduced(*leaf) for leaf in leaves), "concatenate")

    return _measure(layout, norm)


def _integers(axes: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(axis) for axis in (axes if isinstance(axes, Sequence) else (axes,)))
    except TypeError:
        msg = f"axes must be an integer, several, or a function of (path, leaf) that returns them; got {axes!r}"
        raise TypeError(msg) from None


def is_measured(leaf: Any) -> bool:
    """Whether a leaf takes part in norms: real or complex numbers do, integers and float0 do not."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def path_name(path: Any) -> str:
    """Return "a/b/kernel" for a path in a tree, without the ".value" of Flax's nnx variables."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _measure(layout_of: Callable[[list[NamedLeaf]], Layout], norm: str) -> Measure:
    def named_leaves(tree: optax.Updates) -> list[NamedLeaf]:
        found = jax.tree_util.tree_leaves_with_path(tree)
        return [(path_name(path), jnp.asarray(leaf)) for path, leaf in found if is_measured(leaf)]

    def norms(tree: optax.Updates) -> jax.Array:
        named = named_leaves(tree)
        return block_norms([leaf for _, leaf in named], layout_of(named), norm)

    def rescale(tree: optax.Updates, old: jax.Array, new: jax.Array) -> optax.Updates:
        named = named_leaves(tree)
        rescaled = iter(rescale_leaves([leaf for _, leaf in named], layout_of(named), old, new))
        return jax.tree.map(lambda leaf: next(rescaled) if is_measured(leaf) else leaf, tree)

    return Measure(norms, rescale)


def _absolute_values(tree: optax.Updates) -> optax.Updates:
    def size(leaf: Any) -> jax.Array | None:
        if not is_measured(leaf):
            return None
        sizes = jnp.abs(jnp.asarray(leaf))
        return sizes.astype(accumulation_dtype(sizes.dtype))

    return jax.tree.map(size, tree)


def _replace_absolute_values(tree: optax.Updates, old: Any, new: Any) -> optax.Updates:
    sizes = iter(zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))

    def replace(leaf: Any) -> Any:
        if not is_measured(leaf):
            return leaf
        leaf = jnp.asarray(leaf)
        before, after = next(sizes)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return _replace_modulus(leaf, before, after)
        # A limit beyond the leaf's range must not turn a clipped infinity back into one.
        held = jnp.minimum(after, jnp.asarray(jnp.finfo(leaf.dtype).max, after.dtype))
        wide = jnp.copysign(held, leaf.astype(after.dtype)).astype(leaf.dtype)
        # Unchanged numbers come back bit for bit, and with a derivative of 1, at 0 too.
        return jnp.where(before == after, leaf, wide)

    return jax.tree.map(replace, tree)


def _replace_modulus(leaf: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    # A modulus that is not finite has no phase that could be kept.
    new = jnp.where(jnp.isinf(old), 0, new)
    return rescale_leaves([leaf], Layout((0,), ((),), "scalar"), old, new)[0]


def _leading_axes(_: str, leaf: jax.Array) -> tuple[int, ...]:
    # Dense and convolution kernels of Flax keep the output features in the last axis.
    return tuple(range(max(leaf.ndim - 1, min(leaf.ndim, 1))))


def _all_axes(leaves: list[NamedLeaf]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(leaf.ndim)) for _, leaf in leaves)


def _each(leaves: list[NamedLeaf]) -> tuple[int, ...]:
    return tuple(range(len(leaves)))
