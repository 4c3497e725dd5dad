"""Measures: how large each block of a gradient tree is, and the way back from norms to a tree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.blocks import block_norms, rescale_leaves
from novoclip.elements import absolute_values, replace_absolute_values
from novoclip.layout import Layout, block_counts, split
from novoclip.leaves import NamedLeaf, named_leaves, with_numbers
from novoclip.mesh import eval_shape, leaf_axes, shapes_of

ALL = "sees_all"  # an attribute of functions of norms one of which is not finite if any number is not


def _lacking(*_: Any) -> Any:
    msg = "this rule's per must be a string, or a Measure made by tensors(), units() or groups()"
    raise TypeError(msg)


class Measure(NamedTuple):
    """Functions that turn a tree into the norms of its blocks, and back.

    Attributes:
      norms: `norms(tree)`: a scalar, or one vector over all blocks, in float32 (float64
        if any leaf is); for slices of leaves, `Slices`, whose arrays are of leaves that are alike; with
        `elementwise`, the tree of absolute values.
      rescale: `rescale(tree, old, new)`: the tree whose blocks, of norms `old`, have been
        multiplied by one factor each so that their norms are `new`. Structure, shapes and
        dtypes stay. A block whose `new` is 0 becomes zeros, even if it held NaN.
      elementwise: whether each number is a block of its own.
      spread: `spread(values, tree)`: for each leaf the values of its blocks, in a shape that broadcasts
        to the leaf's. A Measure of your own may do without it and the next two: then rules that hold
        single numbers to a block's limit, or need a certain norm, refuse it.
      counts: `counts(tree)`: how many numbers each block has.
      with_norm: `with_norm(norm)`: the Measure of the same blocks by another norm.
      name: what error messages call it: a state made with one is refused by a rule with another.
      rounding: how many units in the last place a norm may be above its limit by rounding alone.
      max_copies: with `elementwise`, how many copies of the parameters the history of a rule may take.
    """

    norms: Callable[[optax.Updates], Any]
    rescale: Callable[[optax.Updates, Any, Any], optax.Updates]
    elementwise: bool = False
    spread: Callable[[Any, optax.Updates], optax.Updates] = _lacking
    counts: Callable[[optax.Updates], Any] = _lacking
    with_norm: Callable[[str], "Measure"] = _lacking
    name: str = "a Measure"
    max_copies: int = 64
    rounding: float = 4.0


def blocks_of(
    layout_of: Callable[[list[NamedLeaf]], Layout],
    norm: str,
    name: str,
    check: Callable[[Any], None] = lambda _: None,
) -> Measure:
    """Return the Measure of the blocks that a function lays out over named leaves of pytrees that pass a check."""

    def norms(tree: optax.Updates) -> Any:
        check(tree)
        named = named_leaves(tree)
        return block_norms([leaf for _, leaf in named], layout_of(named), norm)

    norms.__dict__[ALL] = True

    def rescale(tree: optax.Updates, old: Any, new: Any) -> optax.Updates:
        named = named_leaves(tree)
        return with_numbers(tree, rescale_leaves([leaf for _, leaf in named], layout_of(named), old, new))

    def spread(values: Any, tree: optax.Updates) -> optax.Updates:
        named = named_leaves(tree)
        return with_numbers(tree, split(values, [leaf for _, leaf in named], layout_of(named)))

    def counts(tree: optax.Updates) -> Any:
        named = named_leaves(tree)
        return block_counts([leaf for _, leaf in named], layout_of(named))

    def with_norm(other: str) -> Measure:
        return blocks_of(layout_of, other, name, check)

    return Measure(norms, rescale, False, spread, counts, with_norm, f"{name} ({norm})")


def norm_shapes(measure: Measure, tree: Any) -> Any:
    """Return the shapes of the norms of a pytree; those of elements with the shardings of the leaves."""
    return (shapes_of if measure.elementwise else eval_shape)(measure.norms, tree)


def whole_leaves(block_of: tuple[int, ...], leaves: list[NamedLeaf], form: str) -> Layout:
    """Return the Layout in which each leaf belongs to one block as a whole."""
    axes = tuple(tuple(range(leaf.ndim)) for _, leaf in leaves)
    return Layout(block_of, axes, form, over=tuple(leaf_axes(*leaf) for leaf in leaves))


def _own(values: Any, tree: optax.Updates) -> Any:
    del tree
    return values


def _ones(tree: optax.Updates) -> Any:
    return jax.tree.map(lambda size: jnp.ones((), size.dtype), absolute_values(tree))


# Each number is a block of its own, by any norm.
ELEMENTS = Measure(absolute_values, replace_absolute_values, True, _own, _ones, name="element")
