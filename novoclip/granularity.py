"""Granularities: which numbers of a gradient tree make a block, by name or by a Measure of one's own."""

from collections.abc import Callable
from typing import Any

import jax

from novoclip.arguments import check_choice, check_integer
from novoclip.axes import Axes, AxesOf, check_axes, resolve_axes, resolve_specs
from novoclip.blocks import NORMS
from novoclip.layout import Layout
from novoclip.leaves import NamedLeaf, named_leaves
from novoclip.measure import ELEMENTS, Measure, blocks_of, whole_leaves
from novoclip.mesh import partition_of
from novoclip.paths import check_distinct, is_function
from novoclip.stacks import Stacked, resolve_stacked, within_layers

PER = ("tree", "tensor", "unit", "element")


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
    norm = checked_norm(norm)
    if per == "element" and norm != "l2":
        msg = f"norm={norm!r} has no effect on single numbers: leave it out with per='element'"
        raise ValueError(msg)
    if per == "element":
        return ELEMENTS
    if per == "unit":
        return units("flax", norm=norm)
    if per == "tensor":
        return blocks_of(lambda leaves: whole_leaves(_each(leaves), leaves, "stack"), norm, "tensor")
    return blocks_of(lambda leaves: whole_leaves((0,) * len(leaves), leaves, "scalar"), norm, "tree")


def checked_norm(norm: str) -> str:
    """Return the name of a norm, or raise a ValueError if it is unknown. "inf" is "max"."""
    check_choice("norm", norm, (*NORMS, "inf"))
    return "max" if norm == "inf" else norm


def resolve_blocks(per: str | Measure, norm: str = "l2") -> Measure:
    """Return the Measure, or raise a ValueError if it has no norms that a rule can hold side by side."""
    measure = resolve_measure(per, norm)
    if measure.elementwise:
        msg = f"per must name blocks whose norms can be kept: tree, tensor, unit or a Measure of such; got {per!r}"
        raise ValueError(msg)
    return measure


def resolve_fixed(per: str | Measure, norm: str = "l2", *, elements: bool = False) -> Measure:
    """Return the Measure that `per` names, by the one norm that a rule has, with all its functions.

    Raises:
      TypeError: if `per` is neither a string nor a Measure that the functions of this file make.
      ValueError: if a name is unknown, or `per` is "element" and the rule takes no single numbers.
    """
    measure = resolve_measure(per) if elements else resolve_blocks(per)
    return measure if measure.elementwise else measure.with_norm(norm)


def elements(*, max_copies: int = 64) -> Measure:
    """Measure each element as a block of its own, as `per="element"` does.

    Args:
      max_copies: how many copies of the parameters the history of a rule may take, at least 1. A `window`
        of 1000 norms of each element takes 1000: 4 TB for a model of 10^9.

    Returns:
      A Measure whose norms are the pytree of absolute values.

    Raises:
      TypeError: if `max_copies` is no integer.
      ValueError: if it is below 1.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> rule = novoclip.autoclip(90.0, window=100, per=elements(max_copies=100))
      >>> print(rule.init(jnp.zeros(3)).limit_state.history.shape)
      (3, 100)
    """
    check_integer("max_copies", max_copies, low=1)
    return ELEMENTS._replace(max_copies=max_copies)


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
    norm = checked_norm(norm)
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
        return whole_leaves(tuple(order.index(label) for label in labels), leaves, "stack")

    def check(tree: Any) -> None:
        check_distinct("label_of", [path for path, _ in named_leaves(tree)])

    return blocks_of(layout, norm, "group", check)._replace(label_of=label_of)


def tensors(*, stacked: Stacked = 0, norm: str = "l2", specs: Any = None) -> Measure:
    """Measure one block for each tensor, and for each layer of tensors that stack several.

    Args:
      stacked: how many leading axes of a leaf count layers, as in Flax's `nn.scan`: an integer, a
        function `stacked(path, leaf)` (True is 1), or a tree of integers like the parameters or a part
        of their outer structure, with an entry for each leaf or above it.
      norm: "l1", "l2", "max" or "rms" of the numbers in a tensor.
      specs: inside `jax.shard_map`, how leaves are split: a tree of PartitionSpecs like the parameters.

    Returns:
      A Measure whose norms are one vector, leaf after leaf, layer after layer.

    Raises:
      TypeError: if `stacked` says something that is no integer.
      ValueError: if `norm` is unknown. In use: if a leaf has fewer axes than layers are counted along.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"head": jnp.array([12.0, 5.0]), "layers": jnp.array([[3.0, 4.0], [0.0, 1.0]])}
      >>> print(tensors(stacked={"head": 0, "layers": 1}).norms(params))
      [13.  5.  1.]
    """

    def all_axes(_: str, layer: jax.Array) -> tuple[int, ...]:
        return tuple(range(layer.ndim))

    return _slices(None, all_axes, norm, stacked, specs, "tensor", "concatenate")


def units(
    axes: Axes | str | Callable[[str, jax.Array], Axes], *, norm: str = "l2", stacked: Stacked = 0, specs: Any = None
) -> Measure:
    """Measure one block for each slice that is left of a leaf when `axes` are reduced.

    Args:
      axes: the axes that norms are taken over, or a function `axes(path, leaf)` that
        returns them. For an attention kernel of shape (features, heads, head size), 0
        makes a unit of each column, and (0, 2) of each head. Or the layout of the kernels: "flax"
        and "tensorflow" have the outputs in the last axis, "torch" in the first; the other
        axes are reduced, and a leaf of one axis or none is one block.
      norm: "l1", "l2", "max" or "rms" of the numbers in a unit.
      stacked: how many leading axes of a leaf count layers, as in Flax's `nn.scan`: an integer, a
        function `stacked(path, leaf)` (True is 1), or a tree of integers like the parameters or a part
        of their outer structure, with an entry for each leaf or above it. Each layer
        then has units of its own; `axes` are those of a layer.
      specs: inside `jax.shard_map`, how leaves are split: a tree of PartitionSpecs like the
        parameters. Not needed elsewhere, nor for leaves that are whole on every device.

    Returns:
      A Measure whose norms are `Slices`: arrays of the norms of leaves that are alike, in which the axes that were
      reduced have size 1. So nothing moves between devices that hold parts of a leaf.

    Raises:
      TypeError: if `axes` are no integers.
      ValueError: if a name is unknown, or a leaf lacks such an axis. In use: if a leaf is split over
        mesh axes that `specs` does not name.

    Example:
      >>> import jax.numpy as jnp
      >>> print(*units(0).norms({"kernel": jnp.array([[3.0, 1.0], [4.0, 0.0]])}).arrays)
      [[[5. 1.]]]
      >>> print(*units("torch").norms({"weight": jnp.array([[3.0, 4.0], [1.0, 0.0]])}).arrays)
      [[[5.]
        [1.]]]
    """
    shown = "a function" if is_function(axes) else repr(axes)
    return _slices(axes, resolve_axes(axes), norm, stacked, specs, f"unit (axes={shown})", "slices")


def _slices(axes: Any, axes_of_layer: AxesOf, norm: str, stacked: Stacked, specs: Any, name: str, form: str) -> Measure:
    """Return the Measure of the slices of layers; `axes` is the argument that they come from, to check it."""
    norm = checked_norm(norm)
    layers, spec = resolve_stacked(stacked), resolve_specs(specs)
    axes_of = within_layers(axes_of_layer, layers.at)

    def layout(leaves: list[NamedLeaf]) -> Layout:
        partition = tuple(partition_of(path, leaf, spec.at(path, leaf)) for path, leaf in leaves)
        return Layout(_each(leaves), tuple(axes_of(*leaf) for leaf in leaves), form, partition=partition)

    def check(tree: Any) -> None:
        layers.check(tree)
        spec.check(tree)
        reducible = [(path, leaf) for path, leaf in named_leaves(tree) if leaf.ndim > layers.at(path, leaf)]
        check_axes(axes, axes_of, reducible, tree)

    return blocks_of(layout, norm, name, check)


def _each(leaves: list[NamedLeaf]) -> tuple[int, ...]:
    return tuple(range(len(leaves)))
