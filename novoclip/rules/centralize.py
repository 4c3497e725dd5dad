"""Gradient centralization: subtract from each output's gradient its mean over the inputs."""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.axes import Axes, check_axes, resolve_axes, resolve_specs
from novoclip.clip_state import ClipState
from novoclip.leaves import named_leaves, narrow, reject_integers, with_numbers
from novoclip.mesh import axis_size, partition_of
from novoclip.paths import Path
from novoclip.ranges import accumulation_dtype
from novoclip.rules.record import record
from novoclip.stacks import Stacked, resolve_stacked, within_layers
from novoclip.written import one_each


def centralize(
    axes: Axes | str | Callable[[str, jax.Array], Axes] = "auto", *, stacked: Stacked = 0, specs: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Subtract from each output's gradient its mean over the inputs (gradient centralization).

    u = g - mean(g), with the mean over `axes`, for leaves with at least two axes and more than one input. An output
    whose mean is not finite is set to zero. So are elements of other leaves that are not finite.

    Args:
      axes: the layout of the kernels, as in `units`: "auto" has the outputs in the first axis for layers of Equinox, in
        the last for all else; "flax" and "tensorflow" in the last, "torch" in the first. Or the axes of the inputs: an
        integer, several, or a function `axes(path, leaf)` that returns them.
      stacked: the number of leading layer axes of each leaf, as in `units`: an integer, a function
        `stacked(path, leaf)`, or a pytree of integers that is a prefix of the parameters.
      specs: inside `jax.shard_map`, how leaves are sharded: a pytree of PartitionSpecs like the parameters. None if no
        leaf is.

    Returns:
      A GradientTransformation with a `ClipState` whose `norms` is the global norm of the gradient before
      centralization, and whose limit is infinite.

    Raises:
      TypeError: if `axes` are not integers, or `stacked` gives something that is not an integer.
      ValueError: if the layout is unknown, or a leaf lacks such an axis. In use: if a leaf is sharded over mesh axes
        that `specs` does not name.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = centralize()
      >>> gradient = {"kernel": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
      >>> print(rule.update(gradient, rule.init(gradient))[0]["kernel"])
      [[-1. -2.]
       [ 1.  2.]]

    References:
      Yong, Huang, Hua, Zhang, `Gradient centralization: a new optimization technique for deep
      neural networks <https://arxiv.org/abs/2004.01461>`_, 2020.

    `optax.centralize` averages over every axis but the first, which is right for the layout of torch. For Flax kernels,
    that is the mean over the outputs of each input.
    """
    layers, spec = resolve_stacked(stacked), resolve_specs(specs)
    axes_of = within_layers(resolve_axes(axes), layers.at)
    watch = record()

    def is_kernel(name: Path, leaf: jax.Array) -> bool:
        return leaf.ndim - layers.at(name, leaf) >= 2

    def check(tree: Any) -> None:
        layers.check(tree)
        spec.check(tree)
        check_axes(axes, axes_of, [each for each in named_leaves(tree) if is_kernel(*each)], tree)

    def init(params: optax.Params) -> ClipState:
        check(params)
        return watch.init(params)

    def centered(name: Path, leaf: jax.Array, one: jax.Array) -> jax.Array:
        zero = jnp.zeros((), leaf.dtype)
        kept = jnp.where(jnp.isfinite(leaf), leaf, zero)
        if not is_kernel(name, leaf):
            return kept
        over = axes_of(name, leaf)
        wide = leaf if jnp.iscomplexobj(leaf) else leaf.astype(accumulation_dtype(leaf.dtype))
        number = max(math.prod(leaf.shape[axis] for axis in over), 1)
        split = partition_of(name, leaf, spec.at(name, leaf))
        along = tuple(axis for place in over for axis in split[place])
        if number * axis_size(along) == 1:
            return kept  # the mean of one input is the input itself
        # The division comes before the sum, which could overflow.
        by = (number * axis_size(along) * one).astype(wide.dtype)
        mean = jnp.sum(wide / by, axis=over, keepdims=True)
        mean = jax.lax.psum(mean, along) if along else mean
        return jnp.where(jnp.isfinite(mean), narrow(wide - mean, leaf.dtype), zero)

    def update(
        updates: optax.Updates, state: ClipState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ClipState]:
        reject_integers(updates)
        check(updates)
        _, state = watch.update(updates, state, params, **extra)
        leaves = named_leaves(updates)
        ones = one_each([jnp.ones((), accumulation_dtype(leaf.dtype)) for _, leaf in leaves], [x for _, x in leaves])
        return with_numbers(updates, [centered(*leaf, one) for leaf, one in zip(leaves, ones, strict=True)]), state

    return optax.GradientTransformationExtraArgs(init, update)
