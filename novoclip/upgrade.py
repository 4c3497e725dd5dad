"""States that were saved by an earlier version."""

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.paths import leaves_with_paths, some_of

# Counters that novoclip 0.1.0 did not have. They decide nothing.
ADDED = ("leaf_steps", "leaf_last", "nonfinite_in_a_row", "skipped_in_a_row")


def upgrade_state(restored: Any, state: Any) -> Any:
    """Return a state that was saved by an earlier version in the form that this version has.

    Counters that the earlier version did not have begin at 0. All else must be there, and of the same shape.

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
    saved = {path.keys: leaf for path, leaf in leaves_with_paths(restored)}
    expected = leaves_with_paths(state)
    missing = [path for path, _ in expected if path.keys not in saved and path.keys[-1] not in ADDED]
    known = {path.keys for path, _ in expected}
    extra = ["/".join(keys) for keys in saved if keys not in known]
    if missing or extra:
        msg = (
            f"restored must be a state of this optimizer, with the arguments that it had; it lacks {some_of(missing)}, "
            f"and has {some_of(extra)} too many"
        )
        raise ValueError(msg)

    def converted(path: Any, own: Any) -> Any:
        if path.keys not in saved:
            return own
        leaf = saved[path.keys]
        if jnp.shape(leaf) != jnp.shape(own):
            msg = (
                f"restored has shape {jnp.shape(leaf)} at {str(path)!r}, and this optimizer {jnp.shape(own)}: give the "
                "optimizer the arguments that it had"
            )
            raise ValueError(msg)
        return jnp.asarray(leaf, own.dtype)

    return jax.tree.unflatten(jax.tree.structure(state), [converted(path, own) for path, own in expected])
