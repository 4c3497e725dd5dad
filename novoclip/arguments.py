"""Checks of arguments at construction, and the value of a number that may be a schedule.

Only Python and NumPy numbers are checked by value. A JAX array may be a tracer, so it is checked by
dtype and shape alone: what `inject_hyperparams` makes must not raise in eager mode where it does not under jit.
"""

from collections.abc import Callable, Sequence
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.mesh import broadcast_like
from novoclip.ranges import without_infinity

Number = float | np.ndarray | jax.Array
Schedulable = Number | Callable[[jax.Array], Number]


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
        msg = f"{name} must be a scalar or a vector with one entry a block; got shape {shape}"
        raise ValueError(msg)
    if isinstance(value, jax.Array):
        return
    array = np.asarray(value)
    above = (array > low) if exclude_low else (array >= low)
    below = (array < high) if exclude_high else (array <= high)
    if not np.all(above & below):
        msg = f"{name} must be {allowed}; got {value!r}"
        raise ValueError(msg)


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


def value_at(value: Schedulable, step: jax.Array, like: jax.Array, name: str) -> jax.Array:
    """Return a number, or a schedule's value at `step`, broadcast to `like`."""
    number = value(step) if callable(value) else value
    number = without_infinity(number if hasattr(number, "dtype") else np.asarray(float(number), like.dtype))
    number = jnp.asarray(number).astype(like.dtype)
    if number.ndim and number.shape != like.shape:
        msg = f"{name} has shape {number.shape}, but the blocks have shape {like.shape}"
        raise ValueError(msg)
    return broadcast_like(number, like)


def rate_at(decay: Schedulable, step: jax.Array, like: jax.Array, name: str) -> jax.Array:
    """Return 1 - decay as `value_at` does; a decay that is NaN counts as 1, so that no memory takes it in."""
    rate = 1 - value_at(decay, step, like, name)
    return jnp.where(jnp.isnan(rate), 0, rate)
