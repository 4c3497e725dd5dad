"""Float32 weights in the state of an optimizer, for parameters of 16 bits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice
from novoclip.counting import safe_increment
from novoclip.origin import check_origin, made_by
from novoclip.paths import leaves_with_paths
from novoclip.precision.narrow import fitting, fixed, is_narrow, nearest, same, stepped, update_to, widened
from novoclip.precision.remainders import joined, split
from novoclip.wrappers.inner import checked_inner

Remainder = Literal["int16", "int8"] | None


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
      weights: a pytree like the parameters, with None in place of leaves that are not 16-bit floats. A leaf is the
        float32 weight, or with `remainder` the int16 or int8 that a bfloat16 parameter lacks.
      inner: the state of the optimizer.
      steps: int32, steps taken; it stops at the largest int32.
      origin: that `master_weights` made the state, and with which remainder; it holds no array.
    """

    weights: Any
    inner: Any
    steps: jax.Array
    origin: Any = ()


def master_weights(
    inner: optax.GradientTransformation, *, remainder: Remainder = None
) -> optax.GradientTransformationExtraArgs:
    """Update bfloat16 or float16 parameters in float32 (mixed precision training with master weights).

    The optimizer is given float32 gradients and float32 weights, and its updates are added to the weights in float32:
    w_t = w_{t-1} + update_t. The returned updates are such that `optax.apply_updates(params, updates)` is w_t rounded
    to the dtype of the parameters. They are float32; nothing may change them afterwards, so this is the outermost
    transform: `master_weights(optax.chain(clip, adam))`. Only `optax.MultiSteps` may be outside.

    Three exceptions to exact rounding. Where a weight becomes smaller in one step than about 2^-16 times what it was
    (float16: 2^-13), no float32 update gives it: then the weight in the state becomes what the parameter becomes, which
    differs by at most half a unit in the last place of the old float32 weight. Where a step overflows float32, it is
    shortened likewise. On devices that flush subnormal numbers, such as CPUs under XLA, subnormal bfloat16 becomes 0.

    Parameters that were changed between two steps, as by a restored checkpoint: without `remainder`, each element that
    is not the rounded weight replaces the weight. With `remainder` this is not noticed, and the remainder is added to
    the given parameter, at most half a unit in its last place; call `init` for an exact start.

    Args:
      inner: the optimizer. Its state is made for float32 parameters. Leaves of other dtypes are passed on as they are.
      remainder: what is kept in the state. None: float32 weights, 4 bytes per parameter. "int16": the bits that a
        bfloat16 parameter lacks, 2 bytes per parameter; together they are exactly the float32 weight. "int8": 8 of
        these bits, so that weights have 16 significant bits, and updates below 2^-17 times the weight are lost. With
        either, ties are rounded away from zero, not to even, and parameters must be bfloat16.

    Returns:
      A GradientTransformation with a `MasterWeightsState`.

    Raises:
      TypeError: if `inner` is no GradientTransformation, or `remainder` no string. In `init`: if there is a remainder
        and a parameter is float16.
      ValueError: if `remainder` is unknown. In `update`: if no parameters are given, or the state is of other shapes.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = jnp.ones((), jnp.bfloat16)
      >>> for optimizer in (optax.sgd(1e-3), master_weights(optax.sgd(1e-3))):
      ...     value, state = params, optimizer.init(params)
      ...     for _ in range(100):
      ...         updates, state = optimizer.update(jnp.ones((), jnp.bfloat16), state, value)
      ...         value = optax.apply_updates(value, updates)
      ...     print(value)
      1
      0.898438

    References:
      Micikevicius et al., `Mixed precision training <https://arxiv.org/abs/1710.03740>`_, 2018, for float32 weights.
    """
    rule = checked_inner(inner)
    if remainder is not None:
        check_choice("remainder", remainder, ("int16", "int8"))
    origin = made_by(f"master_weights(remainder={remainder!r})")

    def init(params: optax.Params) -> MasterWeightsState:
        _check_dtypes(params, remainder)
        weights = jax.tree.map(lambda leaf: _started(leaf, remainder) if is_narrow(leaf) else None, params)
        return MasterWeightsState(weights, rule.init(jax.tree.map(widened, params)), jnp.zeros((), jnp.int32), origin)

    def update(
        updates: optax.Updates, state: MasterWeightsState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, MasterWeightsState]:
        check_origin(state, MasterWeightsState, origin)
        given, structure = _leaves_of(params, "master_weights")
        kept = _kept(state.weights, given, structure)
        wide = list(map(_weight, given, kept))
        gradients = structure.unflatten(map(widened, fitting(structure, updates)))
        moved, inner_state = rule.update(gradients, state.inner, structure.unflatten(wide), **extra)
        done = list(map(_stepped, given, kept, wide, structure.flatten_up_to(moved)))
        sent, weights = structure.unflatten([one for one, _ in done]), structure.unflatten([two for _, two in done])
        steps = safe_increment(state.steps, jnp.array(True))
        return sent, MasterWeightsState(weights, inner_state, steps, state.origin)

    return optax.GradientTransformationExtraArgs(init, update)


def weights_of(state: MasterWeightsState, params: optax.Params) -> optax.Params:
    """Return the float32 weights, for evaluation or for a checkpoint.

    Args:
      state: the state of `master_weights`.
      params: the parameters that belong to the state.

    Returns:
      The parameters, with the float32 weights in place of the 16-bit leaves.

    Raises:
      ValueError: if the state is another's, or does not fit the parameters.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> optimizer, params = master_weights(optax.sgd(0.5), remainder="int16"), jnp.ones(1, jnp.bfloat16)
      >>> updates, state = optimizer.update(jnp.full(1, 0.001), optimizer.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(params, weights_of(state, params))
      [1] [0.9995]
    """
    check_origin(state, MasterWeightsState, state.origin if isinstance(state, MasterWeightsState) else _ANY)
    given, structure = _leaves_of(params, "weights_of")
    return structure.unflatten(map(_weight, given, _kept(state.weights, given, structure)))


_ANY = made_by("weights_of")


def _check_dtypes(params: Any, remainder: Remainder) -> None:
    for path, leaf in leaves_with_paths(params):
        if remainder is not None and is_narrow(leaf) and leaf.dtype != jnp.bfloat16:
            msg = (
                f"remainder={remainder!r} needs parameters of bfloat16; {path!r} has {leaf.dtype}: write remainder=None"
            )
            raise TypeError(msg)


def _leaves_of(params: Any, name: str) -> tuple[list[Any], Any]:
    if params is None:
        msg = f"{name} needs the parameters; got params=None: write update(gradients, state, params)"
        raise ValueError(msg)
    return jax.tree.flatten(params)


def _kept(weights: Any, given: list[Any], structure: Any) -> list[Any]:
    kept = structure.flatten_up_to(weights)
    for one, leaf in zip(kept, given, strict=True):
        found, expected = getattr(one, "shape", None), leaf.shape if is_narrow(leaf) else None
        if found != expected:
            msg = f"the state of master_weights keeps weights of shape {found} for a parameter of shape {expected} "
            msg += "(None: not a 16-bit float): call init again, with these parameters"
            raise ValueError(msg)
    return kept


def _started(leaf: jax.Array, remainder: Remainder) -> jax.Array:
    return widened(leaf) if remainder is None else jnp.zeros_like(leaf, dtype=remainder)


def _weight(leaf: Any, kept: Any) -> Any:
    """Return the float32 weight of a parameter."""
    if kept is None:
        return leaf
    leaf = fixed(jnp.asarray(leaf))
    if jnp.issubdtype(kept.dtype, jnp.integer):
        return joined(leaf, kept)
    return jnp.where(same(nearest(kept, leaf.dtype), leaf), kept, widened(leaf))


def _stepped(leaf: Any, kept: Any, wide: Any, step: Any) -> tuple[Any, Any]:
    """Return the update of a parameter, and what is kept of its new weight."""
    if kept is None or step is None:
        return step, kept
    new = stepped(wide, step)
    if jnp.issubdtype(kept.dtype, jnp.integer):
        target, left = split(new, kept.dtype)
        update, reached = update_to(fixed(target), leaf)
        return update, jnp.where(same(reached, target), left, jnp.zeros_like(left))
    target = nearest(new, leaf.dtype)
    update, reached = update_to(target, leaf)
    return update, jnp.where(same(reached, target), new, widened(reached))
