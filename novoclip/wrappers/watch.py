"""Norms of gradients, updates and parameters, every few steps, inside jit."""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_flag, check_integer
from novoclip.clip_state import ClipState
from novoclip.counting import safe_increment
from novoclip.granularity import resolve_fixed
from novoclip.guards.losses import loss_of, scalar_loss
from novoclip.guards.nonfinite import NonfiniteState
from novoclip.guards.spike_state import SpikeState
from novoclip.leaves import unwrapped
from novoclip.masks import with_gradients
from novoclip.measure import Measure
from novoclip.mesh import eval_shape
from novoclip.optimizers.algorithm import OptimizerState
from novoclip.origin import check_origin, made_by
from novoclip.slices import Slices
from novoclip.wrappers.histograms import histograms_of
from novoclip.wrappers.inner import checked_inner
from novoclip.wrappers.watch_state import WatchState, score, start_score

TREES = ("gradients", "updates", "params")
MOMENTS = ("mu", "nu", "root", "trace", "sum_of_squares")


def watch(
    inner: optax.GradientTransformation,
    *,
    every: int = 100,
    per: str | Measure = "tensor",
    of: str | Sequence[str] = "gradients",
    histogram: bool = False,
    moments: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Measure gradients, updates and parameters every few steps, and change nothing.

    At the first step, and then at each multiple of `every`, it takes the norm, the root mean square and the largest
    absolute value of each tensor of the gradients, and on request of the updates and the parameters, with the norm of
    each update over that of its parameter. `novoclip.metrics(opt_state, params)` reports them:
    `watch/gradients/norm/decoder/kernel`. On the other steps it costs a branch that is not taken, for which the host of
    a GPU waits. At each step it also judges whether the norm of the gradient that is known inside, or the loss, is
    above the mean of the 128 before it plus 6 standard deviations. The norm is known if a guard (`protect`,
    `skip_spikes`) is outermost inside, or a rule with one norm (`clip_by_global_norm`, `record()`) is first in the
    chain, without a name. The fraction of such steps is the spike score, `watch/spike_score`. It is 0 with
    `watch/judged` 0 where no norm is known and no loss is given: put `novoclip.record()` first.

    Args:
      inner: the optimizer, with its rules and guards: `watch(novoclip.protect(optax.adamw(3e-4)))`.
      every: after how many steps to measure again, at least 1.
      per: what is measured by itself: "tensor", "tree" (all together), or a Measure: `groups(label_of)`,
        `tensors(stacked=1)`.
      of: which of "gradients", "updates" and "params"; the ratio needs the last two. Gradients alone cost nothing
        measurable on steps between. Of updates and parameters XLA's CPU backend keeps a copy each for the branch, at
        every step: a bare AdamW step took 3.7 times as long with them, and 2.6 times with the parameters alone.
      histogram: whether to count the elements of each leaf by their absolute value too, in bins of half a decade: read
        them by `novoclip.histograms`.
      moments: whether to measure the moments of the optimizer too: parts of its state that are like the parameters and
        are called mu, nu, root, trace or sum_of_squares.

    Returns:
      A GradientTransformation with a `WatchState`. Updates are those of `inner`. Its `update` takes the loss as
      `value=`, and passes all arguments on.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `every` is below 1, a name is unknown, or `per` names units or elements. In `update`: if parameters
        are to be measured and are absent.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> optimizer = watch(optax.sgd(0.5), every=10, of=["gradients", "updates", "params"])
      >>> params = {"kernel": jnp.array([3.0, 4.0])}
      >>> updates, state = optimizer.update({"kernel": jnp.array([0.6, 0.8])}, optimizer.init(params), params)
      >>> report = novoclip.metrics(state, params)
      >>> print(report["watch/gradients/norm/kernel"], report["watch/params/norm/kernel"], report["watch/ratio/kernel"])
      1.0 5.0 0.1

    References:
      OLMo Team, `2 OLMo 2 Furious <https://arxiv.org/abs/2501.00656>`_, 2024, for a spike score (theirs: beyond seven
      standard deviations of the latest 1000 values).
    """
    rule = checked_inner(inner)
    check_integer("every", every, low=1)
    check_flag("histogram", histogram)
    check_flag("moments", moments)
    trees = _checked_trees(of)
    measure = resolve_fixed(per)
    largest = measure.with_norm("max")
    origin = made_by(f"watch({', '.join(trees)}, per {measure.name})")

    def figures(tree: Any) -> dict[str, Any]:
        norm = measure.norms(tree)
        if isinstance(norm, Slices):
            msg = "per must name blocks that can be listed: tensor, tree, groups(...) or tensors(...); got units"
            raise ValueError(msg)
        found = {"norm": norm, "rms": norm / jnp.sqrt(measure.counts(tree)), "max": largest.norms(tree)}
        return found | ({"histogram": histograms_of(tree)} if histogram else {})

    def all_figures(parts: dict[str, Any]) -> dict[str, Any]:
        seen = {name: figures(tree) for name, tree in parts.items()}
        if "updates" in seen and "params" in seen:
            weights = seen["params"]["norm"]
            ratio = jnp.where(weights > 0, seen["updates"]["norm"] / jnp.where(weights > 0, weights, 1), 0)
            seen["ratio"] = {"norm": ratio}
        return seen

    def init(params: optax.Params) -> WatchState:
        state = rule.init(params)
        own = _moments(state, params) if moments else {}
        if moments and not own:
            msg = f"moments=True, but the state of inner has none of {', '.join(MOMENTS)} that is like the parameters; "
            msg += (
                "in optax.masked and optax.partition they are parts: put watch inside, around the optimizer of a part"
            )
            raise ValueError(msg)
        parts = dict.fromkeys(trees, params) | own
        seen = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), eval_shape(all_figures, parts))
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        return WatchState(zero(), state, zero(), seen, origin=origin, **start_score(_norm_inside(state)))

    def update(
        updates: optax.Updates, state: WatchState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, WatchState]:
        check_origin(state, WatchState, origin)
        if params is None and "params" in trees:
            msg = "watch needs the parameters: call update(updates, state, params), or leave 'params' out of of="
            raise ValueError(msg)
        sent, inner_state = rule.update(updates, state.inner, params, **extra)
        known = {"gradients": updates, "updates": sent, "params": with_gradients(params, updates)}
        parts = {name: known[name] for name in trees} | (_moments(inner_state, updates) if moments else {})
        due = state.steps % every == 0
        seen = _if_due(due, lambda: _fitting(all_figures(parts), state.seen), state.seen)
        steps = safe_increment(state.steps, jnp.array(True))
        value = scalar_loss(loss_of(extra), jnp.float32)
        return sent, WatchState(
            steps=steps,
            inner=inner_state,
            seen_at=jnp.where(due, steps, state.seen_at),
            seen=seen,
            origin=state.origin,
            **score(state, _norm_inside(inner_state), value),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _checked_trees(of: Any) -> tuple[str, ...]:
    names = (of,) if isinstance(of, str) else tuple(of)
    unknown = [name for name in names if name not in TREES]
    if unknown or not names:
        msg = f"of must name some of {', '.join(TREES)}; got {of!r}"
        raise ValueError(msg)
    return tuple(name for name in TREES if name in names)


def _fitting(found: Any, before: Any) -> Any:
    """Return what was measured in the dtypes of what was measured before."""
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (found, before)]
    if shapes[0] != shapes[1]:
        msg = (
            "the gradients have other blocks than the parameters given to init: call init with parameters whose leaves "
        )
        msg += f"have the shapes of the gradients, and None where there is none; got {shapes[0]}, expected {shapes[1]}"
        raise ValueError(msg)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), found, before)


def _if_due(due: jax.Array, measured: Any, before: Any) -> Any:
    """Return what is measured, if it is due. A branch everywhere: an extra pass at each step would cost more."""
    if not isinstance(due, jax.core.Tracer):
        return measured() if bool(due) else before
    return lax.cond(due, measured, lambda: before)


def _norm_inside(state: Any) -> jax.Array | None:
    """Return the norm of the whole gradient that a state shows, if what is outermost, or first in a chain, takes it."""
    found = None
    if isinstance(state, SpikeState):
        found = _array(state.norm)
    elif isinstance(state, ClipState):
        found = None if isinstance(state.norms, tuple) or _array(state.norms).ndim else _array(state.norms)
    elif isinstance(state, OptimizerState | NonfiniteState):
        found = _norm_inside(state.clip if isinstance(state, OptimizerState) else state.inner)
        if found is not None and not isinstance(state.nonfinite_in_a_row, tuple):
            # The states inside of a step that was skipped are those of the step before.
            found = jnp.where(_array(state.nonfinite_in_a_row) > 0, jnp.nan, found)
    elif type(state) is tuple:
        found = _norm_inside(state[0]) if state else None
    elif not isinstance(state, optax.MaskedState):  # a mask shows a part of the gradient only
        fields = [field for field in ("inner", "inner_opt_state", "inner_state") if hasattr(state, field)]
        found = _norm_inside(getattr(state, fields[0])) if fields else None
    return found


def _array(leaf: Any) -> jax.Array:
    return jnp.asarray(unwrapped(leaf))


def _moments(state: Any, params: Any) -> dict[str, Any]:
    """Return the parts of a state that are like the parameters, by the names that optimizers have for them."""
    structure: Any = jax.tree.structure(params)
    found: dict[str, Any] = {}
    for name in MOMENTS:
        for _, tree in optax.tree.get_all_with_path(state, name):
            if jax.tree.structure(tree) == structure:
                found.setdefault(name, tree)
    return found
