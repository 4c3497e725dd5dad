"""Which leaves are shards, where JAX does not record it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import numpy as np
import optax

from novoclip.leaves import named_leaves
from novoclip.matching import ByPath, check_entries, may_match_hidden
from novoclip.mesh import declared_varying, varying_axes
from novoclip.paths import Path, check_distinct, entry_for, is_function, leaves_with_paths, some_of
from novoclip.wrappers.inner import checked_inner


def across_shards(
    inner: optax.GradientTransformation,
    *,
    axis_name: str | Sequence[str],
    sharded: Any,
) -> optax.GradientTransformationExtraArgs:
    """Tell every rule within which leaves differ from device to device, under `jax.pmap` or `check_vma=False`.

    ||g||^2 = sum over leaves of ||leaf||^2, added up over the devices along `axis_name` for leaves that are
    sharded, and counted once for the others. Inside `jax.shard_map` JAX records this by itself: there
    this wrapper changes nothing. Where other leaves are split over other axes, wrap twice. An `inner.update` that
    was compiled before, by `jax.jit`, has not heard of it.

    Args:
      inner: any rule, optimizer, guard, or chain of them; also Optax's, which it does not change.
      axis_name: the mapped axis, or several, that leaves are split over.
      sharded: which leaves are: True (all), a function `sharded(path, leaf)`, where `path` reads
        "a/b/kernel", or a tree of booleans like the parameters or a part of their outer structure, with an
        entry for each leaf or above it. Which array axes are split, where a rule has to know, its `specs=` says.

    Returns:
      A GradientTransformation with the state of `inner`.

    Raises:
      TypeError: if an argument has the wrong type; in use, if `sharded` says something that is no boolean.
      ValueError: in use, if no leaf is sharded, or an entry of `sharded` is for none; in `update`, if `axis_name` is
        not mapped there.

    Example:
      >>> import jax, jax.numpy as jnp, novoclip
      >>> rule = across_shards(novoclip.clip_by_global_norm(1.0), axis_name="devices", sharded={"w": True, "b": False})
      >>> gradients = {"w": jnp.array([[4.0], [4.0], [4.0], [4.0]]), "b": jnp.array([6.0])}
      >>> def norm(w, b):
      ...     return rule.update({"w": w, "b": b}, rule.init({"w": w, "b": b}))[1].norms
      >>> print(jax.vmap(norm, in_axes=(0, None), axis_name="devices")(gradients["w"], gradients["b"])[0])
      10.0

    References:
      JAX's documentation of `shard_map <https://docs.jax.dev/en/latest/notebooks/shard_map.html>`_, on the
      record of varying values and `check_vma`.
    """
    rule = checked_inner(inner)
    several = isinstance(axis_name, Sequence) and not isinstance(axis_name, str)
    names: tuple[Any, ...] = tuple(axis_name) if several else (axis_name,)
    if not names or not all(isinstance(name, str) for name in names):
        msg = f"axis_name must be the name of a mapped axis, or several; got {axis_name!r}"
        raise TypeError(msg)
    shards = _resolve_sharded(sharded)

    def axes_of(name: str, leaf: jax.Array) -> tuple[str, ...]:
        return tuple(filter(_unrecorded, names)) if shards.at(name, leaf) else ()

    def init(params: optax.Params) -> Any:
        shards.check(params)
        if _unmapped(names):
            return rule.init(params)  # outside of the map, of whole leaves
        with declared_varying(axes_of):
            return rule.init(params)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        if missing := _unmapped(names):
            msg = f"axis_name={missing!r} is not mapped here: call update inside jax.pmap or jax.shard_map over it"
            raise ValueError(msg)
        shards.check(updates)
        with declared_varying(axes_of):
            return rule.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(init, update)


def _resolve_sharded(sharded: Any) -> ByPath:
    """Return what `sharded` says of each leaf."""
    function = is_function(sharded)
    said = sharded if function else entry_for(sharded, "sharded")

    def at(name: Path, leaf: jax.Array) -> bool:
        answer = said(name, leaf)
        if not isinstance(answer, bool | np.bool_):
            msg = f"sharded must say True or False; got {answer!r} for {name!r}"
            raise TypeError(msg)
        return bool(answer)

    def check(tree: Any) -> None:
        leaves = named_leaves(tree)
        answers = [at(*leaf) for leaf in leaves]
        if function:
            check_distinct("sharded", [name for name, _ in leaves])
        else:
            check_entries("sharded", [path.keys for path, _ in leaves_with_paths(sharded)], tree)
        if leaves and not any(answers) and not may_match_hidden(at, tree):
            msg = f"sharded says True for no leaf, of {some_of(name for name, _ in leaves)}"
            raise ValueError(msg)

    return ByPath(at, check)


def _unmapped(axes: Sequence[str]) -> str | None:
    """Return the first of the axes that no map around this call has, if there is one."""
    for axis in axes:
        try:
            lax.axis_index(axis)
        except NameError:
            return axis
    return None


def _unrecorded(axis: str) -> bool:
    return not varying_axes(lax.axis_index(axis))
