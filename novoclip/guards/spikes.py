"""Steps left out because their gradient or loss is far above the latest."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from novoclip.arguments import check_choice, check_integer
from novoclip.clipping import count_up
from novoclip.granularity import resolve_measure
from novoclip.guards.branch import when
from novoclip.leaves import reject_integers
from novoclip.limits import Limit, choose
from novoclip.measure import norm_shapes
from novoclip.ranges import no_limit
from novoclip.rules.deviation import deviations_of_history
from novoclip.wrappers.inner import checked_inner

LEARN = ("good", "all")


class SpikeState(NamedTuple):
    """The state of `skip_spikes`.

    Attributes:
      steps: int32, steps seen; stops at the largest int32, as the other counters do.
      skipped: int32, steps left out, for a spike or because something was not finite.
      nonfinite: int32, those among them with a gradient norm or a loss that was not finite.
      released: int32, spikes let through, clipped, after too many in a row.
      spikes_in_a_row: int32, the latest spikes without a usual step between them.
      norm: the gradient's norm at the last step.
      limit: its limit then.
      value_limit: that of the loss, if there was one.
      norm_memory: what the Limit learned from the norms of steps that were not left out.
      value_memory: the same of the losses.
      inner: the optimizer's own.
    """

    steps: jax.Array
    skipped: jax.Array
    nonfinite: jax.Array
    released: jax.Array
    spikes_in_a_row: jax.Array
    norm: jax.Array
    limit: jax.Array
    value_limit: jax.Array
    norm_memory: Any
    value_memory: Any
    inner: Any


def skip_spikes(
    inner: optax.GradientTransformation,
    limit: Limit | None = None,
    *,
    max_in_a_row: int = 16,
    learn: str = "good",
) -> optax.GradientTransformationExtraArgs:
    """Leave out steps whose gradient norm, or loss, lies far above those of the latest good steps.

    A step is a spike if ||g|| > c, the limit of the norms of good steps before it, or if
    `update(..., value=loss)` is given and the loss is beyond its own limit, found likewise. Then updates are
    zero and `inner` is not called: its moments, counters and weight decay stand still. A
    norm or loss that is not finite is always left out. Neither enters what the limits are found from.

    After `max_in_a_row` spikes without a usual step between, the level has changed: the next
    ones go to `inner`, clipped at c, and are learned as they came, until one is no spike.

    Args:
      inner: the optimizer, with the rules in front of it: `skip_spikes(optax.chain(clip, adam))`.
      limit: any Limit; `deviations_of_history(6.0, eps=0.01)` by default, which needs 64 steps before
        the first that it leaves out, and leaves none out within 6 % of the mean.
      max_in_a_row: how many spikes in a row are left out, at least 1.
      learn: "good" keeps spikes out of what the limits are found from; "all" learns
        them as they came, as OLMo-core does, and as a quantile must, such as
        `percentile_of_history(99.0, include_current=False, warmup=100)`: that of good steps alone would
        leave out one in a hundred, and then one in a hundred of the rest.

    Returns:
      A GradientTransformation with a `SpikeState`. Its `update` takes the loss as `value=`; without
      it, as in Flax's `TrainState.apply_gradients`, norms alone decide.

    Raises:
      TypeError: if an argument has the wrong type, or the loss is no scalar.
      ValueError: if `max_in_a_row` is below 1, or `learn` is unknown.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> limit = novoclip.deviations_of_history(6.0, warmup=2)
      >>> optimizer = skip_spikes(optax.sgd(0.1), limit)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> for gradient in (1.0, 1.5, 100.0, jnp.nan, 1.0):
      ...     updates, state = optimizer.update(jnp.array([gradient]), state, value=2.0)
      ...     print(updates)
      [-0.1]
      [-0.15]
      [0.]
      [0.]
      [-0.1]

    References:
      OLMo Team, `2 OLMo 2 Furious <https://arxiv.org/abs/2501.00656>`_, 2024 (`SkipStepAdamW`).

    Under `pmap`, and inside `shard_map`, all devices have to see the same gradients and the same loss:
    average them first. With `optax.MultiSteps`, guard the whole: `skip_spikes(MultiSteps(...))`.

    There spikes enter the window (`learn="all"`), so that the next one passes. axlearn keeps them
    out as we do, but may then skip for ever. Of a run that jumps to and fro between two levels every
    step on the higher one is left out.
    """
    rule = checked_inner(inner)
    check_integer("max_in_a_row", max_in_a_row, low=1)
    check_choice("learn", learn, LEARN)
    bound = deviations_of_history(6.0, eps=0.01) if limit is None else limit
    if not isinstance(bound, Limit) or bound.needs_params:
        msg = f"limit must be a Limit that needs no parameters; got {limit!r}"
        raise TypeError(msg)
    tree = resolve_measure("tree")

    def init(params: optax.Params) -> SpikeState:
        norm = norm_shapes(tree, params)
        zero, infinite = (
            functools.partial(jnp.zeros, ()),
            functools.partial(jnp.full, (), no_limit(norm.dtype), norm.dtype),
        )
        return SpikeState(
            steps=zero(jnp.int32),
            skipped=zero(jnp.int32),
            nonfinite=zero(jnp.int32),
            released=zero(jnp.int32),
            spikes_in_a_row=zero(jnp.int32),
            norm=zero(norm.dtype),
            limit=infinite(),
            value_limit=infinite(),
            norm_memory=bound.init(norm),
            value_memory=bound.init(norm),
            inner=rule.init(params),
        )

    def update(
        updates: optax.Updates, state: SpikeState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, SpikeState]:
        reject_integers(updates)
        norm = tree.norms(updates)
        finite = jnp.isfinite(norm.astype(state.norm.dtype))

        def judged(size: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
            seen = size.astype(state.norm.dtype)
            return bound.update(jnp.where(finite, seen, 0), memory, None, **extra | {"step": state.steps})

        value = _scalar(extra.get("value"), state.norm.dtype)
        if value is not None:
            finite = finite & jnp.isfinite(value)
        norm_limit, norm_memory = judged(norm, state.norm_memory)
        spike = finite & (norm > norm_limit.astype(norm.dtype))
        value_limit, value_memory = state.value_limit, state.value_memory
        if value is not None:
            value_limit, value_memory = judged(value, state.value_memory)
            spike = spike | (finite & (value > value_limit))
        released = spike & (state.spikes_in_a_row >= max_in_a_row)
        taken = finite & (~spike | released)
        learned = (finite if learn == "all" else taken) & ~(jnp.isnan(norm_limit) | jnp.isnan(value_limit))
        held = jnp.where(released, jnp.minimum(norm, norm_limit.astype(norm.dtype)), norm)
        sent, memory = when(
            taken,
            lambda: rule.update(tree.rescale(updates, norm, held), state.inner, params, **extra),
            updates,
            state.inner,
        )
        return sent, SpikeState(
            steps=count_up(state.steps, jnp.array(True)),
            skipped=count_up(state.skipped, ~taken),
            nonfinite=count_up(state.nonfinite, ~finite),
            released=count_up(state.released, released),
            spikes_in_a_row=jnp.where(finite & ~spike, 0, count_up(state.spikes_in_a_row, spike)),
            norm=norm.astype(state.norm.dtype),
            limit=jnp.where(finite, norm_limit, state.limit),
            value_limit=jnp.where(finite, value_limit, state.value_limit),
            norm_memory=choose(learned, norm_memory, state.norm_memory),
            value_memory=choose(learned, value_memory, state.value_memory),
            inner=memory,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _scalar(value: Any, dtype: Any) -> jax.Array | None:
    if value is None:
        return None
    if jnp.ndim(value) or not isinstance(value, float | np.floating | np.ndarray | jax.Array):
        msg = f"value must be the loss, a real scalar; got {value!r}"
        raise TypeError(msg)
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        msg = f"value must be the loss, a real scalar; got dtype {value.dtype}"
        raise TypeError(msg)
    return value.astype(dtype)
