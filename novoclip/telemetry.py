"""What clipping did: the statistics in an optimizer state."""

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.clipping import ClipState
from novoclip.guards import NonfiniteState, SpikeState
from novoclip.optimizers.algorithm import OptimizerState
from novoclip.paths import make_path
from novoclip.wrappers import CarryState

# Which of a state's fields are reported, and under which name.
REPORTED: dict[Any, tuple[str, tuple[str, ...]]] = {
    ClipState: ("clip", ("steps", "norms", "limits", "fraction", "clipped", "nonfinite")),
    OptimizerState: ("optimizer", ("steps", "nonfinite")),
    CarryState: ("carry", ("steps", "nonfinite")),
    NonfiniteState: ("guard", ("steps", "nonfinite")),
    SpikeState: ("spikes", ("steps", "skipped", "nonfinite", "released", "norm", "limit", "value_limit")),
}


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Collect the statistics of every rule in an optimizer state.

    Works on the state of a chain, a partition, a mask, MultiSteps and `nnx.Optimizer`, in
    and outside of jit, and waits for nothing: the values are arrays until somebody reads them.

    Args:
      opt_state: any tree that contains a state of novoclip.

    Returns:
      A flat dict of scalars. `clip/steps`, `clip/clipped` and `clip/nonfinite` count steps since the
      start; `clip/fraction` is the share of blocks that the last step clipped, and what follows is the
      last step's too (per element only `clip/steps`, unless counting was asked for). A rule with one
      block adds `clip/norm` and `clip/limit`, one with many `clip/norm_mean`, `clip/norm_max`,
      `clip/limit_mean`, `clip/limit_max`. With several rules, the place of each in the tree stands
      between: `clip/0/norm`. Optimizers add `optimizer/steps` and `optimizer/nonfinite`,
      `guard_nonfinite` the same of `guard`, `uclip` and `clip21` of `carry`, and `skip_spikes` adds
      `spikes/steps`, `skipped`, of which `nonfinite`, `released`, `norm`, `limit` and `value_limit`.
      Empty if there is none. Of a state that `jax.pmap` returned, take one device's part first.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> optimizer = optax.chain(novoclip.clip_by_global_norm(1.0), optax.adam(1e-3))
      >>> params = {"w": jnp.zeros(2)}
      >>> updates, state = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params))
      >>> for name, value in metrics(state).items():
      ...     print(name, value)
      clip/steps 1
      clip/norm 5.0
      clip/limit 1.0
      clip/fraction 1.0
      clip/clipped 1
      clip/nonfinite 0
    """
    report: dict[str, jax.Array] = {}
    for kind, (name, fields) in REPORTED.items():
        leaves = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=lambda node, kind=kind: isinstance(node, kind))
        found = [(path, node) for path, node in leaves if isinstance(node, kind)]
        for path, state in found:
            prefix = f"{name}/{make_path(path)}" if len(found) > 1 else name
            report |= {f"{prefix}/{field}": value for field, value in _statistics(state, fields).items()}
    return report


def _statistics(state: Any, fields: tuple[str, ...]) -> dict[str, jax.Array]:
    kept = {name: _array(getattr(state, name)) for name in fields if not isinstance(getattr(state, name), tuple)}
    statistics: dict[str, jax.Array] = {}
    for name, value in kept.items():
        if name not in ("norms", "limits"):
            statistics[name] = value
        elif value.ndim == 0:
            statistics[name.removesuffix("s")] = value
        else:
            statistics[f"{name.removesuffix('s')}_mean"] = jnp.sum(value) / max(value.size, 1)
            statistics[f"{name.removesuffix('s')}_max"] = jnp.max(value, initial=0)
    return statistics


def _array(leaf: Any) -> jax.Array:
    # Flax's nnx.Optimizer wraps each array of its state in a Variable.
    return jnp.asarray(leaf[...] if hasattr(leaf, "get_value") else leaf)
