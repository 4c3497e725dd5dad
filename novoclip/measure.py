"""The Measure type: the norms of the blocks of a pytree, and the pytree rescaled to new norms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.blocks import block_norms, rescale_leaves
from novoclip.elements import absolute_values, replace_absolute_values
from novoclip.forms import block_counts, block_names, split
from novoclip.layout import Layout
from novoclip.leaves import NamedLeaf, named_leaves, with_numbers
from novoclip.mesh import eval_shape, leaf_axes, shapes_of
from novoclip.slices import Slices

ALL = "sees_all"  # attribute of functions that return norms: if an element is not finite, one of the norms is not


def _lacking(*_: Any) -> Any:
    msg = (
        "this rule's per must be a string, or a Measure made by tensors(), units() or groups(); "
        "got one without spread, counts or with_norm"
    )
    raise TypeError(msg)


class Measure(NamedTuple):
    """Functions that compute the norms of the blocks of a pytree, and rescale the pytree to new norms.

    A block is the unit that is clipped together.

    Attributes:
      norms: `norms(tree)`: a scalar, or one vector over all blocks, in float32 (float64 if any leaf is). For slices of
        leaves, `Slices`, each array of which belongs to leaves whose norms have the same shape. With `elementwise`, the
        pytree of absolute values.
      rescale: `rescale(tree, old, new)`: the pytree with each block, of norm `old`, multiplied by the one factor that
        makes its norm `new`. Structure, shapes and dtypes do not change. A block whose `new` is 0 becomes zeros, even
        if it contains NaN.
      elementwise: whether each element is a block of its own.
      spread: `spread(values, tree)`: for each leaf the values of its blocks, in a shape that broadcasts to that of the
        leaf. A custom Measure may omit this field and the next two. Rules that clip elements at the limit of a block,
        or that need a certain norm, then raise a TypeError.
      counts: `counts(tree)`: the number of elements in each block.
      with_norm: `with_norm(norm)`: the Measure of the same blocks with another norm.
      name: the name in error messages. A rule refuses a state that was made with a Measure of another name.
      rounding: how far a norm may be above its limit by rounding alone, in units in the last place.
      max_copies: how many copies of the parameters the history of a rule may take.
      label_of: with groups, the function of (path, leaf) that returns the label of a leaf.
      names: `names(tree)`: the names of the norms in a state, such as the paths of the leaves.
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
    label_of: Callable[[Any, Any], str] | None = None
    names: Callable[[optax.Updates], list[str]] = _lacking


def blocks_of(
    layout_of: Callable[[list[NamedLeaf]], Layout],
    norm: str,
    name: str,
    check: Callable[[Any], None] = lambda _: None,
    label_of: Callable[[Any, Any], str] | None = None,
) -> Measure:
    """Return the Measure of the blocks that a function lays out over the named leaves of a pytree.

    Args:
      layout_of: returns the Layout of named leaves.
      norm: "l1", "l2", "max" or "rms".
      name: what error messages call the blocks.
      check: raises an error if a pytree does not have the leaves that the blocks are made of.
      label_of: with groups, the function of (path, leaf) that returns the label of a leaf.
    """

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
        return blocks_of(layout_of, other, name, check, label_of)

    def names(tree: optax.Updates) -> list[str]:
        named = named_leaves(tree)
        return block_names(named, layout_of(named), label_of)

    return Measure(norms, rescale, False, spread, counts, with_norm, f"{name} ({norm})", label_of=label_of, names=names)


def norm_shapes(measure: Measure, tree: Any) -> Any:
    """Return the shapes of the norms of a pytree, and for norms of elements the shardings of the leaves."""
    return (shapes_of if measure.elementwise else eval_shape)(measure.norms, tree)


def total_norm(norms: Slices) -> jax.Array:
    """Return the Euclidean norm of the norms that are finite."""
    finite = [jnp.where(jnp.isfinite(norm), norm, 0) for norm in norms.arrays]
    axes = tuple(tuple(range(norm.ndim)) for norm in finite)
    return block_norms(finite, Layout((0,) * len(axes), axes, "scalar", over=((),) * len(axes)), "l2")


def whole_leaves(block_of: tuple[int, ...], leaves: list[NamedLeaf], form: str) -> Layout:
    """Return the Layout in which each leaf belongs as a whole to the block of that index."""
    axes = tuple(tuple(range(leaf.ndim)) for _, leaf in leaves)
    return Layout(block_of, axes, form, over=tuple(leaf_axes(*leaf) for leaf in leaves))


def _own(values: Any, tree: optax.Updates) -> Any:
    del tree
    return values


def _ones(tree: optax.Updates) -> Any:
    return jax.tree.map(lambda size: jnp.ones((), size.dtype), absolute_values(tree))


# Each element is a block of its own. Its absolute value is its norm, whichever norm is asked for.
ELEMENTS = Measure(absolute_values, replace_absolute_values, True, _own, _ones, name="element")
