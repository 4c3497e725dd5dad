"""Declaring which leaves are sharded, where JAX does not record it."""

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
    """Declare which leaves are sharded, for every rule inside, under `jax.pmap` or `check_vma=False`.

    ||g||^2 = sum over leaves of ||leaf||^2, where ||leaf||^2 is summed over the devices along `axis_name` for sharded
    leaves, and counted once for the others. Inside `jax.shard_map` JAX records this by itself, and the wrapper changes
    nothing. Where some leaves are sharded over other axes, wrap twice. An `inner.update` that `jax.jit` compiled before
    does not see the declaration.

    Args:
      inner: any rule, optimizer, guard, or chain of them; also Optax's, which it does not change.
      axis_name: the mapped axis, or several, that leaves are sharded over.
      sharded: which leaves are sharded: True for all, a function `sharded(path, leaf)` of paths such as "a/b/kernel",
        or a pytree of booleans that is a prefix of the parameters. Rules that need to know which array axes are
        sharded take `specs=`.

    Returns:
      A GradientTransformation with the state of `inner`.

    Raises:
      TypeError: if an argument has the wrong type. In `init` and `update`: if `sharded` holds or returns anything but
        booleans.
      ValueError: in `init` and `update`, if no leaf is sharded, or an entry of `sharded` matches no leaf. In `update`:
        if `axis_name` is not mapped.

    Example:
      >>> import jax, jax.numpy as jnp, novoclip
      >>> rule = across_shards(novoclip.clip_by_global_norm(1.0), axis_name="devices", sharded={"w": True, "b": False})
      >>> gradients = {"w": jnp.array([[4.0], [4.0], [4.0], [4.0]]), "b": jnp.array([6.0])}
      >>> def norm(w, b):
      ...     return rule.update({"w": w, "b": b}, rule.init({"w": w, "b": b}))[1].norms
      >>> print(jax.vmap(norm, in_axes=(0, None), axis_name="devices")(gradients["w"], gradients["b"])[0])
      10.0

    References:
      JAX's documentation of `shard_map <https://docs.jax.dev/en/latest/notebooks/shard_map.html>`_, on
      varying values and `check_vma`.
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
            return rule.init(params)  # outside the map, where leaves are not sharded
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
    """Return whether each leaf is sharded, and the check of `sharded`."""
    function = is_function(sharded)
    declared = sharded if function else entry_for(sharded, "sharded")

    def at(name: Path, leaf: jax.Array) -> bool:
        answer = declared(name, leaf)
        if not isinstance(answer, bool | np.bool_):
            msg = f"sharded must be True or False for each leaf; got {answer!r} for {name!r}"
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
            msg = f"sharded is True for no leaf, of {some_of(name for name, _ in leaves)}"
            raise ValueError(msg)

    return ByPath(at, check)


def _unmapped(axes: Sequence[str]) -> str | None:
    """Return the first of the axes that is not mapped around this call, or None."""
    for axis in axes:
        try:
            lax.axis_index(axis)
        except NameError:
            return axis
    return None


def _unrecorded(axis: str) -> bool:
    return not varying_axes(lax.axis_index(axis))
