"""Granularities: which elements of the gradients are clipped together, by name or by a Measure."""

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
      per: "tree" (the whole pytree), "tensor" (each leaf), "unit" (each output unit, as `units("auto")` finds it),
        "element" (each element), or a Measure, which has its own norm.
      norm: norm of the elements of a block: "l1", "l2", "max" or "rms"; "inf" is "max".

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
        msg = f"norm={norm!r} has no effect on elements: omit it with per='element'"
        raise ValueError(msg)
    if per == "element":
        return ELEMENTS
    if per == "unit":
        return units("auto", norm=norm)
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
    """Make each element a block of its own, as `per="element"` does, with room for longer histories.

    Args:
      max_copies: number of copies of the parameters that the history of a rule may take, at least 1. A `window` of 1000
        norms per element takes 1000: 4 TB for a model of 10^9 parameters.

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
    """Make one block of all leaves that have the same label.

    Args:
      label_of: a function `label_of(path, leaf)` that returns the label of a leaf; `path` is a string, "a/b/kernel".
      norm: norm of all elements of a group: "l1", "l2", "max" or "rms".

    Returns:
      A Measure whose norms are one vector, in the order in which labels first occur. To give thresholds by label, use
      a mapping: `clip_by_norm({"embed": 0.1, "*": 1.0}, per=groups(label_of))`.

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

    return blocks_of(layout, norm, "group", check, label_of)


def tensors(*, stacked: Stacked = 0, norm: str = "l2", specs: Any = None) -> Measure:
    """Make one block of each tensor, and of each layer of tensors that stack several layers.

    Args:
      stacked: the number of leading layer axes of each leaf, as in Flax's `nn.scan`: an integer, a function
        `stacked(path, leaf)` (True is 1), or a pytree of integers that is a prefix of the parameters.
      norm: norm of the elements of a tensor: "l1", "l2", "max" or "rms".
      specs: inside `jax.shard_map`, how leaves are sharded: a pytree of PartitionSpecs like the parameters.

    Returns:
      A Measure whose norms are one vector, leaf after leaf, layer after layer.

    Raises:
      TypeError: if `stacked` is or returns anything but integers.
      ValueError: if `norm` is unknown. In use: if a leaf has fewer axes than layer axes.

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
    """Make one block of each output unit: of each slice that is left of a leaf when `axes` are reduced.

    Args:
      axes: the layout of the kernels, the axes that are reduced, or a function `axes(path, leaf)` that returns these.
        "auto" has the outputs in the first axis for layers of Equinox (`equinox.nn`), in the last for all else; "flax"
        and "tensorflow" in the last; "torch" in the first. All other axes are reduced, and a leaf of one axis or none
        is one block. For an attention kernel of shape (features, heads, head size), axes=0 makes a unit of each
        column, and (0, 2) of each head.
      norm: norm of the elements of a unit: "l1", "l2", "max" or "rms".
      stacked: the number of leading layer axes of each leaf, as in Flax's `nn.scan`: an integer, a function
        `stacked(path, leaf)` (True is 1), or a pytree of integers that is a prefix of the parameters. Each layer has
        units of its own; `axes` are those of a layer.
      specs: inside `jax.shard_map`, how leaves are sharded: a pytree of PartitionSpecs like the parameters. Not needed
        elsewhere, nor for leaves that every device holds in full.

    Returns:
      A Measure whose norms are `states.Slices`: arrays of the norms of leaves that have norms of one shape, in which
      reduced axes have size 1. Nothing moves between devices that hold parts of a leaf.

    Raises:
      TypeError: if `axes` are no integers.
      ValueError: if a name is unknown, or a leaf lacks such an axis. In use: if a leaf is sharded over mesh axes that
        `specs` does not name.

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
