"""Metrics as scalars: checked at once, copied without waiting for the device, converted to numbers later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def _copy(arrays: list[jax.Array]) -> list[jax.Array]:
    return [jnp.copy(array) for array in arrays]


def keep(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Check metrics and copy them, so that later donation or mutation of the caller's arrays changes nothing.

    Args:
      metrics: a flat mapping of names to scalars.

    Returns:
      The same names, with numbers of Python for what is on the host and copies for what is on a device. The copies
      are on their way to the host.

    Raises:
      TypeError: if a value is traced, or a name is not a string.
      ValueError: if a value is not one real number, or a metric is called "step".
    """
    for name, value in metrics.items():
        _check(name, value)
    kept = {name: value if isinstance(value, jax.Array) else _number(value) for name, value in metrics.items()}
    # A program runs on one device: there is one for each device that holds a metric.
    by_device: dict[Any, dict[str, jax.Array]] = {}
    for name, value in kept.items():
        if isinstance(value, jax.Array):
            # One element is replicated. Its local replica needs no other process.
            local = value.addressable_data(0)
            by_device.setdefault(next(iter(local.devices())), {})[name] = local
    for arrays in by_device.values():
        for name, copy in zip(arrays, _copy(list(arrays.values())), strict=True):
            copy.copy_to_host_async()
            kept[name] = copy
    return kept


def numbers(kept: Iterable[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, float]]]:
    """Convert what `keep` returned to numbers of Python. Waits for the device."""
    return [(step, {name: _number(value) for name, value in metrics.items()}) for step, metrics in kept]


def _number(value: Any) -> float:
    # An explicit transfer, which jax.transfer_guard allows.
    number = np.asarray(jax.device_get(value)).item()
    return int(number) if isinstance(number, bool) else number


def _check(name: Any, value: Any) -> None:
    if not isinstance(name, str):
        msg = f"names of metrics must be strings, got {name!r}"
        raise TypeError(msg)
    if name == "step":
        msg = "no metric may be called 'step': the step has that name. Rename the metric"
        raise ValueError(msg)
    if isinstance(value, jax.core.Tracer):
        msg = (
            f"metric {name!r} is traced: call write outside of jit, with the metrics that the compiled function returns"
        )
        raise TypeError(msg)
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError as error:
        msg = f"metric {name!r} must be a scalar, got {type(value).__name__} of unequal parts"
        raise ValueError(msg) from error
    if array.size != 1:
        msg = (
            f"metric {name!r} must be a scalar, got an array of shape {array.shape}: "
            "write a mean or a maximum of it, or one metric for each element"
        )
        raise ValueError(msg)
    is_real = jnp.issubdtype(array.dtype, jnp.bool_) or (
        jnp.issubdtype(array.dtype, jnp.number) and not jnp.issubdtype(array.dtype, jnp.complexfloating)
    )
    if not is_real:
        msg = (
            f"metric {name!r} must be a real number, got {type(value).__name__} of shape {array.shape} and dtype "
            f"{array.dtype}: metrics are a flat mapping of names to scalars"
        )
        raise ValueError(msg)
