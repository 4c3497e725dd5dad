"""The smallest of several limits."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from novoclip.limit import Limit, make_limit


def tighter(*limits: Limit) -> Limit:
    """Limit each block to the smallest of several limits.

    Each Limit learns from the norms as if it were used alone.

    Args:
      limits: two or more Limits.

    Returns:
      A Limit whose state is a tuple of theirs.

    Raises:
      TypeError: if one is not a Limit.
      ValueError: if there are fewer than two.

    Example:
      >>> import jax.numpy as jnp
      >>> from novoclip.limits import constant
      >>> limit = tighter(constant(3.0), constant(1.0))
      >>> print(limit.update(jnp.array(2.0), limit.init(jnp.zeros(())), step=jnp.int32(0))[0])
      1.0
    """
    for limit in limits:
        if not isinstance(limit, Limit):
            msg = f"limits must be Limits, such as limits.constant(1.0); got {limit!r}"
            raise TypeError(msg)
    if len(limits) < 2:
        msg = f"tighter takes at least two Limits, as in tighter(first, second); got {len(limits)}"
        raise ValueError(msg)

    def update(norms: Any, state: Any, param_norms: Any = None, /, **extra: Any) -> tuple[Any, Any]:
        results = [limit.update(norms, part, param_norms, **extra) for limit, part in zip(limits, state, strict=True)]
        return functools.reduce(jnp.minimum, [bound for bound, _ in results]), tuple(part for _, part in results)

    return make_limit(
        lambda norms: tuple(limit.init(norms) for limit in limits),
        update,
        needs_params=any(limit.needs_params for limit in limits),
        name=f"tighter({', '.join(limit.name for limit in limits)})",
        signed=all(limit.signed for limit in limits),
        needs_total=any(limit.needs_total for limit in limits),
    )
