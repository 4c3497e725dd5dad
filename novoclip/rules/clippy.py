"""Clippy: scale updates down until each element is small compared to its weight."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from novoclip import limits
from novoclip.arguments import check_choice, check_number, value_at
from novoclip.clip_state import ClipState, advance_blocks
from novoclip.clipping import NONFINITE, clip_by_limit, new_norm
from novoclip.counting import safe_increment
from novoclip.granularity import resolve_fixed
from novoclip.leaves import is_measured, named_leaves, reject_integers
from novoclip.masks import masked, with_gradients
from novoclip.mesh import broadcast_like
from novoclip.origin import check_origin, made_by
from novoclip.ranges import common_dtype, no_limit
from novoclip.rounding import UNITS
from novoclip.safe_math import wide_ratio
from novoclip.typing import Granularity, Mask, Nonfinite, ScalarOrSchedule


def clippy(
    relative: ScalarOrSchedule = 0.1,
    absolute: ScalarOrSchedule = 1e-3,
    *,
    floor: ScalarOrSchedule = 0.1,
    per: Granularity = "tensor",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale each tensor's update down until each element is small compared to its weight (Clippy).

    u_new = u min(1, 1 / n) with n = max_i |u_i| / (relative max(|w_i|, floor rms(w)) + absolute). Place it after the
    optimizer and its learning rate in the chain. The direction of each tensor's update does not change.

    As published (`clippy(absolute=1e-7, floor=0.0)`), a single weight of 0 stops its whole tensor: biases, embeddings
    and adapters that start at 0 never change.

    Args:
      relative: allowed step as a fraction of the weight, at least 0: a float, an array or a schedule.
      absolute: allowed step in addition, above 0, in the parameters' units: a float, an array or a schedule.
      floor: lower bound of |w_i|, as a fraction of the root mean square of the tensor, at least 0: a float, an array or
        a schedule.
      per: the block, which is the unit that is scaled together: "tensor", as published, "tree" (the whole pytree),
        "unit" (an output unit), or a Measure made by `tensors`, `units` or `groups`, such as
        `novoclip.tensors(stacked=1)`, whose norm is ignored.
      nonfinite: "zero" sets a block whose update is not finite to zero; "propagate" passes it on.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `norms` are the n of each block, and whose `limits` are 1. Its
      `update` needs the parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, a string is not one of those listed, or `per` is "element". In
        `update`: if the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clippy(0.5)
      >>> params, update = jnp.array([1.0, -2.0]), jnp.array([2.0, 0.5])
      >>> print(rule.update(update, rule.init(params), params)[0].round(4))
      [0.501  0.1252]

    References:
      Tang et al., `Improving training stability for multitask ranking models in recommender systems
      <https://arxiv.org/abs/2302.09178>`_, 2023.

    The authors' optimizer can also allow a fraction of 1 / sqrt(accumulator) of its Adagrad (0 by default), and
    accumulate the clipped gradient. This is the clipping alone, for any optimizer.
    """
    check_number("relative", relative)
    check_number("absolute", absolute, exclude_low=True)
    check_number("floor", floor)
    check_choice("nonfinite", nonfinite, NONFINITE)
    largest, rms = resolve_fixed(per, "max"), resolve_fixed(per, "rms")
    limit = limits.constant(1.0)._replace(name="clippy")
    start, origin = clip_by_limit(largest, limit), made_by(f"{limit.name} per {largest.name}")

    def excess(updates: optax.Updates, params: optax.Params, sizes: Any, step: jax.Array) -> Any:
        """Return the largest (|u| / max |u|) / allowed of each block; the first quotient keeps it in range."""
        dtype = common_dtype([leaf for _, leaf in (*named_leaves(updates), *named_leaves(params))])
        number = jnp.zeros((), dtype)
        share, least, beside = (
            value_at(value, step, number, name)
            for value, name in ((relative, "relative"), (floor, "floor"), (absolute, "absolute"))
        )
        beneath = jax.tree.map(lambda size: least * size.astype(dtype), rms.norms(params))
        divisors = jax.tree.map(lambda size: jnp.where(size > 0, size, 1).astype(dtype), sizes)

        def each(u: Any, w: Any, lowest: Any, size: Any) -> Any:
            if not is_measured(u):
                return u
            u = jnp.asarray(u)
            weight = jnp.maximum(jnp.abs(w).astype(dtype), lowest)
            # The barrier keeps XLA from dividing once, by a product that may be out of range.
            part = lax.optimization_barrier(wide_ratio(jnp.abs(u).astype(dtype), broadcast_like(size, u)))
            return part / (share * weight + beside)

        spread = (largest.spread(values, updates) for values in (beneath, divisors))
        return largest.norms(jax.tree.map(each, updates, params, *spread))

    def update(
        updates: optax.Updates, state: ClipState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ClipState]:
        del extra
        reject_integers(updates)
        check_origin(state, ClipState, origin)
        if params is None:
            msg = "clippy compares updates with the parameters: got params=None, call update(updates, state, params)"
            raise ValueError(msg)
        params = with_gradients(params, updates)
        sizes = largest.norms(updates)
        parts = excess(updates, params, jax.tree.map(lambda n: jnp.where(jnp.isfinite(n), n, 1), sizes), state.steps)
        parts = jax.tree.map(lambda part, n: jnp.where(jnp.isfinite(n), part, n.astype(part.dtype)), parts, sizes)
        sizes = jax.tree.map(lambda part, n: n.astype(part.dtype), parts, sizes)
        limits = jax.tree.map(_inverse, sizes)
        target = functools.partial(new_norm, shape="hard", nonfinite=nonfinite, elementwise=False)
        rescaled = largest.rescale(updates, parts, jax.tree.map(target, parts, limits))
        norms, ones = jax.tree.map(_times, parts, sizes), jax.tree.map(jnp.ones_like, sizes)
        roundings = jax.tree.map(lambda n: UNITS * float(jnp.finfo(n.dtype).eps), norms)
        state = state._replace(steps=safe_increment(state.steps, jnp.array(True)))
        return rescaled, advance_blocks(state, norms, ones, roundings, counting=True)

    return masked(optax.GradientTransformationExtraArgs(start.init, update), mask)


def _inverse(size: jax.Array) -> jax.Array:
    quotient = wide_ratio(jnp.ones_like(size), jnp.where(size > 0, size, 1))
    return jnp.where(size > 0, quotient, no_limit(size.dtype))


def _times(part: jax.Array, size: jax.Array) -> jax.Array:
    """Return part * size, the largest |u| / allowed, at most the largest finite float; or size if it is not finite."""
    return jnp.where(jnp.isfinite(size), jnp.minimum(part * size, jnp.finfo(part.dtype).max), size)
