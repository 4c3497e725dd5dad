"""Per-example clipping: each example's gradient is clipped before the batch is averaged."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.clip_state import ClipState
from novoclip.leaves import is_measured, reject_integers
from novoclip.paths import leaves_with_paths
from novoclip.ranges import accumulation_dtype
from novoclip.slices import Slices
from novoclip.wrappers.inner import checked_inner
from novoclip.written import one_each


def per_example(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Apply a rule to each example's gradient, then average.

    u = mean_i rule(g_i). Updates enter with a leading axis of examples on each leaf, as
    `jax.vmap(jax.grad(loss), in_axes=(None, 0))` returns them, and leave without it. The new state of a rule is the
    mean of those that the examples would leave, without the examples that leave it unchanged. To hold fewer gradients
    at once, put it before `optax.MultiSteps(optimizer, n)` and call it for n microbatches.

    | published | rule |
    |---|---|
    | Abadi et al. | `clip_by_global_norm(C)` |
    | AUTO-V | `normalize_by_norm(C)` |
    | AUTO-S, times its gamma | `clip_by_global_norm(gamma, shape="smooth")` |
    | adaptive quantile, Andrew et al. | `clip_by_running_quantile(0.5, initial=0.1)` |

    Args:
      inner: any clipping rule.

    Returns:
      A GradientTransformation with the rule's state. Its floating-point values are means over the examples; `clipped`
      and `nonfinite` count the steps in which any example was clipped, or was not finite.

    Raises:
      TypeError: if `inner` is not a GradientTransformation. In `update`: if a leaf has no leading axis.
      ValueError: in `update`, if there is no example, if leaves have different numbers of examples, or if parameters
        are given and a leaf without its leading axis has another shape than its parameter.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> rule = per_example(novoclip.clip_by_global_norm(1.0))
      >>> gradients = jnp.array([[3.0, 4.0], [0.0, 0.2]])
      >>> updates, state = rule.update(gradients, rule.init(jnp.zeros(2)))
      >>> print(updates, state.fraction)
      [0.3 0.5] 0.5

    References:
      Abadi et al., `Deep learning with differential privacy <https://arxiv.org/abs/1607.00133>`_,
      2016. Bu, Wang, Zha, Karypis, `Automatic clipping: differentially private deep learning
      made easier and stronger <https://arxiv.org/abs/2206.07136>`_, 2022.

    No noise is added, so that this alone is not differentially private. An example that is not finite counts as zeros.
    """
    rule = checked_inner(inner)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        reject_integers(updates)
        _check_examples(updates, params)
        examples = jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_measured(leaf) else None, updates)

        def one(gradients: optax.Updates) -> tuple[list[jax.Array], Any]:
            sent, new = rule.update(gradients, state, params, **extra)
            return jax.tree.leaves(sent), new

        if not jax.tree.leaves(examples):
            return updates, rule.update(examples, state, params, **extra)[1]
        each, states = jax.vmap(one)(examples)
        numbers = one_each([jnp.asarray(len(leaf), accumulation_dtype(leaf.dtype)) for leaf in each], each)
        means = iter(_divided_sum(*both) for both in zip(each, numbers, strict=True))
        averaged = jax.tree.map(lambda leaf: next(means) if is_measured(leaf) else leaf[0], updates)
        return averaged, _merged(states, state)

    return optax.GradientTransformationExtraArgs(rule.init, update)


def _check_examples(updates: optax.Updates, params: optax.Params | None) -> None:
    shapes = {path.keys: jnp.shape(leaf) for path, leaf in leaves_with_paths(params) if is_measured(leaf)}
    counts = []
    for path, leaf in leaves_with_paths(updates):
        if not jnp.ndim(leaf):
            msg = f"per_example needs gradients with a leading axis of examples; got the scalar {leaf} at {path!r}: "
            msg += "write jax.vmap(jax.grad(loss), in_axes=(None, 0))"
            raise TypeError(msg)
        if not jnp.shape(leaf)[0]:
            msg = f"per_example needs at least one example; got gradients of shape {jnp.shape(leaf)}"
            raise ValueError(msg)
        counts.append((path, jnp.shape(leaf)[0]))
        if jnp.shape(leaf)[1:] != shapes.get(path.keys, jnp.shape(leaf)[1:]):
            msg = f"per_example needs gradients with a leading axis of examples: {path!r} has shape {jnp.shape(leaf)}, "
            msg += f"and its parameter {shapes[path.keys]}"
            raise ValueError(msg)
    if len({count for _, count in counts}) > 1:
        msg = f"per_example needs gradients with one leading axis of examples; got leaves with {dict(counts)} of them"
        raise ValueError(msg)


def _merged(states: Any, before: Any) -> Any:
    """Return one state from the states that the examples leave."""

    def merge(new: Any, old: Any) -> Any:
        if not isinstance(new, ClipState):
            return _mean(new)
        statistics = jax.tree.map(_mean, new)
        if isinstance(new.norms, tuple) or _of_slices(new.limit_state):
            # The state does not hold norms of elements or slices: an example changed it where its state differs.
            return statistics._replace(
                limit_state=jax.tree.map(lambda a, b: _mean_of(a, b, _differs(a, b)), new.limit_state, old.limit_state)
            )
        known = jnp.isfinite(new.norms) & (new.norms > 0)

        def blocks(a: jax.Array, b: jax.Array) -> jax.Array:
            moved = jnp.expand_dims(known, tuple(range(known.ndim, a.ndim)))
            return _mean_of(a, b, jnp.broadcast_to(moved, a.shape))

        return statistics._replace(limit_state=jax.tree.map(blocks, new.limit_state, old.limit_state))

    return jax.tree.map(merge, states, before, is_leaf=lambda node: isinstance(node, ClipState))


def _of_slices(state: Any) -> bool:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, Slices))
    return any(isinstance(node, Slices) for node in nodes)


def _differs(leaf: jax.Array, old: jax.Array) -> jax.Array:
    differs = leaf != old[None]
    return differs & ~(jnp.isnan(leaf) & jnp.isnan(old)) if is_measured(leaf) else differs


def _mean_of(leaf: jax.Array, old: jax.Array, moved: jax.Array) -> jax.Array:
    """Return the mean over the examples that changed a state. Examples of zeros, or not finite, leave it unchanged."""
    count = jnp.sum(moved, axis=0)
    if not is_measured(leaf):
        # Counters, which are the same for all examples that changed the state.
        return jnp.where(count > 0, jnp.max(jnp.where(moved, leaf, jnp.iinfo(leaf.dtype).min), axis=0), old)
    parts = jnp.where(moved, leaf, 0) / jnp.maximum(count, 1).astype(leaf.dtype)[None]
    return jnp.where(count > 0, jnp.sum(parts, axis=0), old)


def _mean(leaf: jax.Array) -> jax.Array:
    if not is_measured(leaf):
        return jnp.max(leaf, axis=0) if jnp.issubdtype(leaf.dtype, jnp.number) else leaf[0]
    return _divided_sum(leaf, jnp.asarray(len(leaf)))


def _divided_sum(leaf: jax.Array, number: jax.Array) -> jax.Array:
    # The division comes before the sum, which could overflow.
    wide = leaf if jnp.iscomplexobj(leaf) else leaf.astype(accumulation_dtype(leaf.dtype))
    by = number.astype(wide.dtype)
    return jnp.sum(wide / by, axis=0).astype(leaf.dtype)
