"""QK-Clip: scale query and key weights down where attention logits are too large."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from novoclip.arguments import check_number


def qk_clip(
    query: jax.Array,
    key: jax.Array,
    max_logits: jax.Array,
    *,
    threshold: float | jax.Array = 100.0,
    balance: float | jax.Array = 0.5,
    head_axis: int = -2,
) -> tuple[jax.Array, jax.Array]:
    """Scale each head's query and key weights down so that its attention logits stay below a threshold (QK-Clip).

    With S the largest logit of a head over the batch and gamma = min(1, threshold / S), the query weights are
    multiplied by gamma^balance and the key weights by gamma^(1 - balance). Apply it to the weights, after the
    optimizer's step.

    For multi-head latent attention, apply it to (q^C, k^C) with balance 0.5, and to q^R with balance 1, which leaves
    the shared k^R unchanged.

    Args:
      query: query kernel, such as that of Flax, (features, heads, head size), or query bias, (heads, head size).
      key: key kernel or bias. If it has fewer heads (grouped queries), each of them gets the smallest gamma of its
        queries.
      max_logits: `(heads,)`, the largest logit of each query head over the batch, after the scaling by
        1 / sqrt(head size). Where it is not finite, or not above 0, the head does not change.
      threshold: largest logit that is allowed, above 0: a float or an array.
      balance: exponent of gamma for the queries, in [0, 1]: a float or an array. 0.5 scales queries and keys equally, 1
        scales the queries only.
      head_axis: the axis of the heads, in both kernels: an integer.

    Returns:
      The two kernels, in their dtypes.

    Raises:
      TypeError: if a number has the wrong type.
      ValueError: if an argument is out of its range, or the numbers of heads do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> query, key = jnp.ones((4, 2, 3)), jnp.ones((4, 2, 3))
      >>> query, key = qk_clip(query, key, jnp.array([50.0, 400.0]))
      >>> print(query[0, :, 0], key[0, :, 0])
      [1.  0.5] [1.  0.5]

    References:
      Kimi Team, `Kimi K2: Open agentic intelligence <https://arxiv.org/abs/2507.20534>`_, 2025.
    """
    for name, number in (("threshold", threshold), ("balance", balance)):
        if callable(number):
            msg = f"{name} must be a number or an array, not a function; got {number!r}"
            raise TypeError(msg)
    check_number("threshold", threshold, exclude_low=True)
    check_number("balance", balance, high=1.0)
    if not all(-kernel.ndim <= head_axis < kernel.ndim for kernel in (query, key)):
        msg = (
            f"head_axis={head_axis} is no axis of kernels of shape {query.shape} and {key.shape}: "
            "write the axis of the heads, -2 in (features, heads, head size)"
        )
        raise ValueError(msg)
    logits = jnp.asarray(max_logits)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    heads, key_heads = query.shape[head_axis], key.shape[head_axis]
    if logits.shape != (heads,):
        msg = f"max_logits must have one entry for each of the {heads} query heads; got shape {logits.shape}"
        raise ValueError(msg)
    if heads % key_heads:
        msg = f"key must have a number of heads that divides the {heads} query heads; got {key_heads}"
        raise ValueError(msg)
    dtype = jnp.promote_types(jnp.result_type(query.dtype, key.dtype), jnp.float32)
    above = jnp.isfinite(logits) & (logits > threshold)
    gamma = jnp.where(above, threshold / jnp.where(above, logits, 1), 1).astype(dtype)

    def scaled(kernel: jax.Array, gamma: jax.Array, power: float | jax.Array) -> jax.Array:
        shape = [1] * kernel.ndim
        shape[head_axis] = kernel.shape[head_axis]
        wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        return (wide * (gamma**power).reshape(shape)).astype(kernel.dtype)

    least = jnp.min(gamma.reshape(key_heads, heads // key_heads), axis=1)
    return scaled(query, gamma, balance), scaled(key, least, 1 - balance)
