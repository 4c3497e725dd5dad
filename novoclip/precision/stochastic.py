"""Stochastic rounding to 16 bits: of any array, and of parameters after an update."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_integer
from novoclip.counting import safe_increment
from novoclip.mesh import leaf_axes
from novoclip.origin import check_origin, made_by
from novoclip.paths import leaves_with_paths
from novoclip.precision.narrow import bits_of, fixed, is_narrow, stepped, update_to, widened
from novoclip.precision.random_bits import random_bits
from novoclip.wrappers.inner import checked_inner


class StochasticRoundingState(NamedTuple):
    """The state of `stochastic_rounding`.

    Attributes:
      steps: int32, steps taken; the random bits of a step are those of its number.
      seed: uint32, the seed.
      inner: the state of the optimizer.
      origin: that `stochastic_rounding` made the state; it holds no array.
    """

    steps: jax.Array
    seed: jax.Array
    inner: Any
    origin: Any = ()


def stochastic_rounding(inner: optax.GradientTransformation, *, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Round updated bfloat16 or float16 parameters up or down at random, so that small updates count on average.

    The sum x = parameter + update is computed in float32. It becomes one of the two nearest 16-bit numbers a <= x <= b:
    b with probability (x - a) / (b - a), so its mean is x. No float32 weights are kept, as `master_weights` does. The
    returned updates are float32, and `optax.apply_updates(params, updates)` gives the rounded sum. Nothing may change
    them afterwards, so this is the outermost transform; only `optax.MultiSteps` may be outside.

    The random bits depend on the seed, the step, and the position of the leaf alone: a restored run continues bit for
    bit, and replicas stay equal. Inside `jax.shard_map`, shards of one leaf have different bits, by their index along
    the mesh axes that the leaf varies over. Under `jax.vmap`, states with one seed have the same bits.

    Args:
      inner: the optimizer. It is given float32 gradients and float32 parameters, and its state is made for these; to
        keep moments in 16 bits, use its own option, such as `mu_dtype`.
      seed: of the random bits, an integer in [0, 2^32).

    Returns:
      A GradientTransformation with a `StochasticRoundingState`. Leaves that are no 16-bit floats are updated as
      `inner` returns it.

    Raises:
      TypeError: if `inner` is no GradientTransformation, or `seed` no integer.
      ValueError: if the seed is out of range. In `update`: if no parameters are given.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = jnp.ones(10_000, jnp.bfloat16)
      >>> for optimizer in (optax.sgd(1e-3), stochastic_rounding(optax.sgd(1e-3))):
      ...     updates, state = optimizer.update(jnp.ones_like(params), optimizer.init(params), params)
      ...     print(round(float(optax.apply_updates(params, updates).astype(jnp.float32).mean()), 4))
      1.0
      0.999

    References:
      Gupta et al., `Deep learning with limited numerical precision <https://arxiv.org/abs/1502.02551>`_, 2015.
      Zamirai et al., `Revisiting bfloat16 training <https://arxiv.org/abs/2010.06192>`_, 2020, for bfloat16 weights.
    """
    rule = checked_inner(inner)
    check_integer("seed", seed, low=0)
    if seed >= 2**32:
        msg = f"seed must be an integer in [0, 2**32); got {seed!r}"
        raise ValueError(msg)
    origin = made_by("stochastic_rounding")

    def init(params: optax.Params) -> StochasticRoundingState:
        inner = rule.init(jax.tree.map(widened, params))
        return StochasticRoundingState(jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32), inner, origin)

    def update(
        updates: optax.Updates, state: StochasticRoundingState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        check_origin(state, StochasticRoundingState, origin)
        if params is None:
            msg = "stochastic_rounding needs the parameters; got params=None: write update(gradients, state, params)"
            raise ValueError(msg)
        steps, inner = rule.update(jax.tree.map(widened, updates), state.inner, jax.tree.map(widened, params), **extra)
        structure: Any = jax.tree.structure(params)
        with jax.threefry_partitionable(True):  # bits that do not depend on how a leaf is sharded
            key = jax.random.fold_in(jax.random.key(state.seed, impl="threefry2x32"), state.steps)
            sent = [
                _rounded(leaf, step, path, jax.random.fold_in(key, i))
                for i, ((path, leaf), step) in enumerate(
                    zip(leaves_with_paths(params), structure.flatten_up_to(steps), strict=True)
                )
            ]
        taken = safe_increment(state.steps, jnp.array(True))
        return structure.unflatten(sent), StochasticRoundingState(taken, state.seed, inner, state.origin)

    return optax.GradientTransformationExtraArgs(init, update)


def _rounded(leaf: Any, step: Any, path: Any, key: jax.Array) -> Any:
    """Return the update that gives a parameter its rounded sum with a step."""
    if step is None or not is_narrow(leaf):
        return step
    total = stepped(widened(leaf), step)
    target = stochastically_rounded(total, leaf.dtype, random_bits(key, total, leaf_axes(path, leaf)))
    return update_to(fixed(target), leaf)[0]


def stochastically_rounded(x: jax.Array, dtype: Any, bits: jax.Array) -> jax.Array:
    """Round float32 numbers to bfloat16 or float16 at random, so that the mean is the number.

    Of the two nearest numbers of the dtype, a <= x <= b, the result is b with probability (x - a) / (b - a): exactly
    for bfloat16, and within 2^-24 for float16. Numbers of the dtype remain as they are, as do infinity and NaN; numbers
    beyond its range become its largest.

    Args:
      x: float32 numbers, of any shape.
      dtype: bfloat16 or float16.
      bits: uint32, random bits of the shape of `x`, as from `jax.random.bits(key, x.shape)`.

    Returns:
      The rounded numbers, in the dtype.

    Raises:
      TypeError: if a dtype is another.
      ValueError: if the shapes differ.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.full(10_000, 1.001)
      >>> rounded = stochastically_rounded(x, jnp.bfloat16, jax.random.bits(jax.random.key(0), x.shape))
      >>> print(jnp.unique(rounded), round(float(rounded.astype(jnp.float32).mean()), 4))
      [1 1.00781] 1.001

    References:
      Croci et al., `Stochastic rounding: implementation, error analysis and applications
      <https://doi.org/10.1098/rsos.211631>`_, 2022.
    """
    target = jnp.dtype(dtype)
    if target not in {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}:
        msg = f"dtype must be bfloat16 or float16; got {target}"
        raise TypeError(msg)
    x, bits = jnp.asarray(x), jnp.asarray(bits)
    if x.dtype != jnp.float32 or bits.dtype != jnp.uint32:
        msg = f"x must be float32 and bits uint32; got {x.dtype} and {bits.dtype}: write x.astype(jnp.float32), and "
        msg += "jax.random.bits(key, x.shape)"
        raise TypeError(msg)
    if x.shape != bits.shape:
        msg = f"bits must have the shape of x, {x.shape}; got {bits.shape}: write jax.random.bits(key, x.shape)"
        raise ValueError(msg)
    rounded = _to_bfloat16(x, bits) if target == jnp.bfloat16 else _to_float16(x, bits)
    most = jnp.asarray(jnp.finfo(target).max, jnp.float32)
    kept = jnp.where(jnp.isfinite(x), jnp.clip(rounded, -most, most), x)
    return kept.astype(target)


def _to_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Return float32 numbers with 16 random bits added to their lowest 16, and these cut off."""
    cut = ((bits_of(x) + (bits & 0xFFFF)) >> 16) << 16
    return lax.bitcast_convert_type(cut, jnp.float32)


def _to_float16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Return float32 numbers rounded to 11 significant bits, or to multiples of 2^-24, whichever is coarser."""
    cut = ((bits_of(x) + (bits & 0x1FFF)) >> 13) << 13
    usual = lax.bitcast_convert_type(cut, jnp.float32)
    units = jnp.abs(x) * 2.0**24
    down = jnp.floor(units)
    up = (bits >> 8).astype(jnp.float32) * 2.0**-24 < units - down
    small = jnp.copysign((down + up.astype(jnp.float32)) * 2.0**-24, x)
    return jnp.where(jnp.abs(x) < 2.0**-14, small, usual)
