"""Checks of arguments at construction, and the value of a number that may be a schedule.

Only Python and NumPy numbers are checked by value. A JAX array may be a tracer, so it is checked by dtype and shape
alone: a value from `inject_hyperparams` must not raise in eager mode if it does not under jit.
"""

from collections.abc import Sequence
import math
import numbers
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from novoclip.mesh import broadcast_like
from novoclip.ranges import without_infinity
from novoclip.typing import ScalarOrSchedule

# Arguments whose distance from 1 matters (for percentiles, from 100), and arguments far below 1.
NEAR_ONE = frozenset({"b1", "b2", "decay", "dampening", "momentum", "percentile", "quantile"})
SMALL = frozenset({"eps", "eps_root"})


def check_number(
    name: str,
    value: Any,
    *,
    low: float = 0.0,
    high: float = math.inf,
    exclude_low: bool = False,
    exclude_high: bool = False,
) -> None:
    """Raise unless `value` is a schedule, a JAX array, or a number in [low, high]."""
    if callable(value):
        return
    brackets = "(" if exclude_low else "[", ")" if exclude_high else "]"
    allowed = f"a number in {brackets[0]}{low:g}, {high:g}{brackets[1]}, an array or a schedule"
    if isinstance(value, bool) or not isinstance(value, numbers.Real | np.ndarray | np.generic | jax.Array):
        msg = f"{name} must be {allowed}; got {value!r}"
        raise TypeError(msg)
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        value = float(value)  # a Fraction, or an integer beyond int32
    dtype = jnp.result_type(value)
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        msg = f"{name} must be {allowed}; got dtype {dtype}"
        raise TypeError(msg)
    shape: tuple[int, ...] = getattr(value, "shape", ())
    if len(shape) > 1:
        msg = f"{name} must be a scalar or a vector with one entry per block; got shape {shape}"
        raise ValueError(msg)
    check_precision(name, value)
    if isinstance(value, jax.Array):
        return
    array = np.asarray(value)
    above = (array > low) if exclude_low else (array >= low)
    below = (array < high) if exclude_high else (array <= high)
    if not np.all(above & below):
        msg = f"{name} must be {allowed}; got {value!r}"
        raise ValueError(msg)


def check_initial(name: str, value: Any) -> None:
    """Raise unless `value` is a JAX array, or a number of at least 0: `init` reads it, so it cannot be a schedule."""
    if callable(value):
        msg = f"{name} must be a number or an array, not a schedule: it is read once, in init; got {value!r}"
        raise TypeError(msg)
    check_number(name, value)


def check_precision(name: str, number: Any) -> None:
    """Raise if a number has a dtype too coarse for it: in bfloat16 0.999 becomes 1, in float16 1e-8 becomes 0.

    This depends on the dtype alone, since values are not known under jit. Thresholds and learning rates may have
    16 bits: they are rounded to about three digits.
    """
    if not jnp.issubdtype(getattr(number, "dtype", jnp.float32), jnp.floating):
        return
    info = jnp.finfo(getattr(number, "dtype", jnp.float32))
    near_one, small = name in NEAR_ONE and info.bits < 32, name in SMALL and float(info.smallest_normal) > 1e-30
    if near_one or small:
        example = "0.999 may become 1" if near_one else "1e-8 becomes 0"
        msg = (
            f"{name} has dtype {info.dtype}, in which {example}: give a Python number or float32; under "
            "optax.inject_hyperparams, write inject_hyperparams(..., hyperparam_dtype=jnp.float32)"
        )
        raise ValueError(msg)


def check_percentile(name: str, value: Any) -> None:
    """Raise unless `value` is a schedule, a JAX array, or a percentile in percent: 0, or a number in (1, 100]."""
    check_number(name, value, high=100.0)
    if callable(value) or isinstance(value, jax.Array):
        return
    array = np.asarray(value, float)
    fractions = array[(array > 0) & (array <= 1)]
    if fractions.size:
        msg = f"{name} is in percent: got {float(fractions[0]):g}, write {float(100 * fractions[0]):g}"
        raise ValueError(msg)


def check_quantile(name: str, value: Any) -> None:
    """Raise unless `value` is a schedule, a JAX array, or a quantile in [0, 1]."""
    if isinstance(value, numbers.Real | np.ndarray) and not isinstance(value, bool):
        array = np.asarray(value)
        percents = array[(array > 1) & (array <= 100)] if array.dtype.kind in "iuf" else array[:0]
        if percents.size:
            msg = f"{name} is a fraction in [0, 1]: got {float(percents[0]):g}, write {float(percents[0]) / 100:g}"
            raise ValueError(msg)
    check_number(name, value, high=1.0)


def check_integer(name: str, value: Any, *, low: int) -> None:
    """Raise unless `value` is a Python or NumPy integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        injected = "; under inject_hyperparams, name it in static_args" if isinstance(value, jax.Array) else ""
        msg = f"{name} must be an integer of at least {low}; got {value!r}{injected}"
        raise TypeError(msg)
    if value < low:
        msg = f"{name} must be an integer of at least {low}; got {value!r}"
        raise ValueError(msg)


def check_flag(name: str, value: Any) -> None:
    """Raise unless `value` is True, False or None."""
    if not (value is None or isinstance(value, bool)):
        msg = f"{name} must be True or False; got {value!r}"
        raise TypeError(msg)


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise unless `value` is one of the `allowed` strings."""
    names = ", ".join(repr(choice) for choice in allowed)
    if not isinstance(value, str):
        msg = f"{name} must be one of {names}; got {value!r}"
        raise TypeError(msg)
    if value not in allowed:
        msg = f"{name} must be one of {names}; got {value!r}"
        raise ValueError(msg)


def value_at(value: ScalarOrSchedule, step: jax.Array, like: jax.Array, name: str) -> jax.Array:
    """Return a number, or a schedule's value at `step`, broadcast to `like`."""
    number = value(step) if callable(value) else value
    check_precision(name, number)
    number = without_infinity(number if hasattr(number, "dtype") else np.asarray(float(number), like.dtype))
    number = jnp.asarray(number).astype(like.dtype)
    if number.ndim and number.shape != like.shape:
        msg = f"{name} has shape {number.shape}, but the blocks have shape {like.shape}"
        raise ValueError(msg)
    if like.ndim and not number.ndim:
        # Without the barrier XLA folds a constant into the factors of `wide_ratio`, and flushes its inverse to 0.
        number = lax.optimization_barrier(number)
    return broadcast_like(number, like)


def rate_at(decay: ScalarOrSchedule, step: jax.Array, like: jax.Array, name: str) -> jax.Array:
    """Return 1 - decay as `value_at` does. A decay that is NaN counts as 1, so that nothing is learned."""
    rate = 1 - value_at(decay, step, like, name)
    return jnp.where(jnp.isnan(rate), 0, rate)
