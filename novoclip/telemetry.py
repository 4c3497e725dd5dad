"""What clipping did: the statistics of an optimizer state, and a transform that only watches."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.clipping import ClipState, clip
from novoclip.limits import constant
from novoclip.measure import Measure, path_name, resolve_measure
from novoclip.optimizers.algorithm import OptimizerState


def record(*, per: str | Measure = "tree", norm: str = "l2") -> optax.GradientTransformationExtraArgs:
    """Pass gradients on unchanged and keep their norms in the state.

    Args:
      per: the blocks: "tree", "tensor", "unit" or a Measure.
      norm: "l1", "l2", "max" or "rms".

    Returns:
      A GradientTransformation with a `ClipState` whose limits are infinite: `norms` are
      those of the last step, `nonfinite` counts the steps with a norm that was not finite.

    Raises:
      TypeError: if `per` is neither a string nor a Measure.
      ValueError: if a name is unknown, or `per` is "element", whose norms are not kept.

    Example:
      >>> import jax.numpy as jnp
      >>> watch = record(per="tensor")
      >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
      >>> updates, state = watch.update(gradients, watch.init(gradients))
      >>> print(state.norms)
      [5. 1.]
    """
    measure = resolve_measure(per, norm)
    if measure.elementwise:
        msg = f"per must name blocks whose norms can be kept; got {per!r}"
        raise ValueError(msg)
    watch = clip(measure, constant(jnp.inf))

    def update(
        updates: optax.Updates, state: ClipState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ClipState]:
        # The clipped gradients are not used, so that XLA computes nothing but the norms.
        return updates, watch.update(updates, state, params, **extra)[1]

    return optax.GradientTransformationExtraArgs(watch.init, update)


def metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Collect the statistics of every rule in an optimizer state.

    Works on the state of a chain, a partition, a mask, MultiSteps and `nnx.Optimizer`, in
    and outside of jit, and waits for nothing: the values are arrays until somebody reads them.

    Args:
      opt_state: any tree that contains a `ClipState` or an `OptimizerState`.

    Returns:
      A flat dict of scalars. `clip/steps`, `clip/fraction`, `clip/clipped` and
      `clip/nonfinite` are the state's (per element only `clip/steps`, unless counting was
      asked for); a rule with one block adds `clip/norm` and `clip/limit`, one with many
      `clip/norm_mean`, `clip/norm_max`, `clip/limit_mean`, `clip/limit_max`. With several rules,
      the place of each in the tree stands between:
      `clip/0/norm`. Our optimizers add `optimizer/steps` and `optimizer/nonfinite`. Empty if
      there is neither.

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
    for kind, name in ((ClipState, "clip"), (OptimizerState, "optimizer")):
        leaves = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=lambda node, kind=kind: isinstance(node, kind))
        found = [(path, node) for path, node in leaves if isinstance(node, kind)]
        for path, state in found:
            prefix = f"{name}/{path_name(path)}" if len(found) > 1 else name
            report |= {f"{prefix}/{field}": value for field, value in _statistics(state).items()}
    return report


def _statistics(state: ClipState | OptimizerState) -> dict[str, jax.Array]:
    kept = {
        name: _array(value)
        for name, value in state._asdict().items()
        if name not in ("memory", "clip") and not isinstance(value, tuple)
    }
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
