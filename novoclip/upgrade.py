"""Conversion of states that were saved by an earlier version."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from novoclip.clip_state import ClipState
from novoclip.origin import text_of
from novoclip.paths import leaves_with_paths, some_of
from novoclip.slices import Slices, places_of

# Counters that novoclip 0.1.0 did not have. No update depends on them.
ADDED = (
    "norms_after",
    "leaf_steps",
    "leaf_last",
    "nonfinite_in_a_row",
    "skipped_in_a_row",
    "norm_spikes",
    "value_spikes",
)
# Fields of novoclip 0.1.0, and their present names.
RENAMED = {
    "memory": ("limit_state", "moments"),
    "norm_memory": ("norm_limit_state",),
    "value_memory": ("value_limit_state",),
    "velocity": ("trace",),
}


def upgrade_state(restored: Any, state: Any) -> Any:
    """Convert a state that was saved by an earlier version to the format of this version.

    Counters that the earlier version did not have start at 0. The norms and limits in the state of a rule per unit,
    which were those of all units, are reset to those of `init`. All other arrays must be there, with the same shapes.
    A vector with the state of all units is split among the leaves that the units belong to.

    Args:
      restored: the saved state: nested dicts and lists of arrays, as Orbax restores them without a target, or the
        NamedTuples themselves.
      state: `optimizer.init(params)` of the same optimizer.

    Returns:
      A pytree like `state`, with the arrays of `restored`.

    Raises:
      ValueError: if an array is missing, is left over, or has another shape.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> rule = novoclip.clip_by_global_norm(1.0)
      >>> state = rule.init(jnp.zeros(2))
      >>> saved = {name: 7 for name in ("steps", "norms", "limits", "fraction", "clipped", "nonfinite")}
      >>> print(upgrade_state(saved, state).steps, upgrade_state(saved, state).nonfinite_in_a_row)
      7 0
    """
    expected = leaves_with_paths(state)
    names = {path.keys for path, _ in leaves_with_paths(state, is_leaf=lambda node: isinstance(node, Slices))}
    saved = {_renamed(path.keys, names): leaf for path, leaf in leaves_with_paths(restored)}
    saved = _in_groups(saved, state)
    by_unit = _shown_by_unit(state)
    missing = [path for path, _ in expected if path.keys not in saved and path.keys[-1] not in ADDED]
    known = {path.keys for path, _ in expected}
    extra = ["/".join(keys) for keys in saved if keys not in known]
    if missing or extra:
        msg = (
            f"restored must be a state of this optimizer, made with the same arguments; it lacks {some_of(missing)}, "
            f"and has {some_of(extra)} too many"
        )
        raise ValueError(msg)

    def converted(path: Any, own: Any) -> Any:
        if path.keys not in saved:
            return own
        leaf = saved[path.keys]
        if path.keys in by_unit and jnp.ndim(leaf) == 1 and jnp.shape(leaf) != jnp.shape(own):
            return own
        if jnp.shape(leaf) != jnp.shape(own):
            msg = (
                f"restored has shape {jnp.shape(leaf)} at {str(path)!r}, and this optimizer {jnp.shape(own)}: make the "
                "optimizer with the arguments that it had when the state was saved"
            )
            raise ValueError(msg)
        return jnp.asarray(leaf, own.dtype)

    return jax.tree.unflatten(jax.tree.structure(state), [converted(path, own) for path, own in expected])


def _renamed(keys: Any, names: set[Any]) -> Any:
    """Return the path of an array of 0.1.0 with the names of this version, if `names` holds it."""
    places = [[key, *RENAMED.get(key, ())] for key in keys]
    return next((path for path in itertools.product(*places) if path in names), keys)


def _in_groups(saved: dict[Any, Any], state: Any) -> dict[Any, Any]:
    """Return the saved arrays, with each vector over all units split into the arrays of Slices."""
    for path, node in leaves_with_paths(state, is_leaf=lambda node: isinstance(node, Slices)):
        if not isinstance(node, Slices) or path.keys not in saved:
            continue
        vector = jnp.asarray(saved[path.keys])
        each = math.prod(vector.shape[1:])
        shapes = {place: a.shape[1:] for a, group in zip(node.arrays, places_of(node), strict=True) for place in group}
        ends = [0, *itertools.accumulate(math.prod(shapes[place]) // max(each, 1) for place in sorted(shapes))]
        if vector.ndim == 0 or ends[-1] != vector.shape[0]:
            continue
        parts = [vector[ends[i] : ends[i + 1]].reshape(shapes[i]) for i in range(len(shapes))]
        arrays = [jnp.stack([parts[i] for i in places]) for places in places_of(node)]
        saved = {name: leaf for name, leaf in saved.items() if name != path.keys}
        saved |= {(*path.keys, "arrays", str(i)): array for i, array in enumerate(arrays)}
    return saved


def _shown_by_unit(state: Any) -> set[Any]:
    """Return the paths of the norms and limits in the states of rules per unit."""
    rules = leaves_with_paths(state, is_leaf=lambda node: isinstance(node, ClipState))
    units = [path.keys for path, rule in rules if isinstance(rule, ClipState) and " per unit " in text_of(rule.origin)]
    return {(*keys, name) for keys in units for name in ("norms", "limits")}
