"""SPAM: Adam that clips spikes at its own second moment and begins anew at intervals."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_flag, check_integer, check_number
from novoclip.optimizers.adam import AdamState, adam_algorithm
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.moments import debiased, divide
from novoclip.optimizers.step import Step
from novoclip.optimizers.thresholds import clipped_at
from novoclip.ranges import no_limit


def _spam(
    b1: Schedulable,
    b2: Schedulable,
    eps: Schedulable,
    threshold: Schedulable,
    delay: int,
    reset_every: int,
    warmup: int,
    restart_bias_correction: bool,
    mu_dtype: Any,
) -> Algorithm:
    check_number("threshold", threshold)
    check_integer("delay", delay, low=0)
    check_integer("reset_every", reset_every, low=1)
    check_integer("warmup", warmup, low=0)
    if delay >= reset_every:
        msg = f"delay must be less than reset_every={reset_every}, or no spike is ever cut; got {delay}"
        raise ValueError(msg)
    check_flag("restart_bias_correction", restart_bias_correction)
    adam = adam_algorithm(b1, b2, eps, 0.0, True, mu_dtype, None)

    def learn(gradients: Any, state: AdamState, step: Step) -> AdamState:
        taken = step.number + 1
        since = taken % reset_every

        def kept(leaf: jax.Array) -> jax.Array:
            return jnp.where(since == 0, jnp.zeros((), leaf.dtype), leaf)

        mu, root = jax.tree.map(kept, (state.mu, state.root))
        weights = state.mu_weight, state.root_weight
        if restart_bias_correction:
            weights = kept(weights[0]), kept(weights[1])
        active = (taken >= delay) & (since >= delay)
        factor = jnp.sqrt(step.value(threshold, "threshold"))
        limits = jax.tree.map(lambda r: jnp.where(active & (r > 0), factor * r, no_limit(r.dtype)), root)
        return adam.learn(clipped_at(gradients, limits), AdamState(mu, root, *weights), step)

    def direction(gradients: Any, state: AdamState, step: Step) -> Any:
        del gradients
        taken = step.number + 1
        since = jnp.where(taken < reset_every, warmup, taken % reset_every)
        angle = jnp.pi * since.astype(step.dtype) / (warmup + 1)
        share = jnp.where(since < warmup, 1 - 0.99 * (1 + jnp.cos(angle)) / 2, 1)
        # eps stands beside the uncorrected root, as in the authors' code.
        by = jnp.sqrt(state.root_weight)
        scaled = divide(debiased(state.mu, state.mu_weight), state.root, step.epsilon(eps, "eps"))
        return jax.tree.map(lambda u: share.astype(u.dtype) * by.astype(u.dtype) * u, scaled)

    return Algorithm(adam.init, learn, direction, "spam")


def scale_by_spam(
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    *,
    eps: Schedulable = 1e-6,
    threshold: Schedulable = 5000.0,
    delay: int = 20,
    reset_every: int = 500,
    warmup: int = 150,
    restart_bias_correction: bool = False,
    mu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Take Adam's direction with spikes cut off at its second moment, and begin anew at intervals (SPAM).

    m and v as in Adam, from numbers cut off at sqrt(threshold v_{t-1}), where v is not 0. At each step t
    that is a multiple of `reset_every`, counted from 1, m and v are 0 before it; k steps after it, k < warmup,
    the direction is multiplied by 1 - 0.99 (1 + cos(pi k / (warmup + 1))) / 2. Spikes are
    cut from `delay` steps after the start and after each reset.

    A threshold of 5000 lets 71 deviations pass: a `clip=` in front does more against outliers.

    Args:
      b1: decay of m in [0, 1): a float, an array or a schedule.
      b2: decay of v in [0, 1), likewise.
      eps: beside the root of v before its bias is corrected, at least 0, likewise.
      threshold: at least 0, in units of v, likewise.
      delay: at least 0, and less than `reset_every`; under `inject_hyperparams` a static argument, as are the next two.
      reset_every: at least 1.
      warmup: at least 0, and 0 for none.
      restart_bias_correction: whether the bias corrections begin anew with m and v. As published
        they do not, and the first directions after a reset are sqrt(1 / (1 - b2)) (1 - b1) times too
        long, which the warm-up then hides; with a short one, say True.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_spam(delay=3, threshold=4.0)
      >>> state = rule.init(jnp.zeros(1))
      >>> for gradient in (1.0, 1.0, 1000.0):
      ...     updates, state = rule.update(jnp.array([gradient]), state)
      >>> print(f"{state.moments.mu[0]:.2f}")
      0.18

    References:
      Huang et al., `SPAM: Spike-aware Adam with momentum reset for stable LLM training
      <https://arxiv.org/abs/2501.06842>`_, 2025.
    """
    algorithm = _spam(b1, b2, eps, threshold, delay, reset_every, warmup, restart_bias_correction, mu_dtype)
    return scale_by(algorithm, nonfinite=nonfinite)


def spam(
    learning_rate: Schedulable,
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    *,
    eps: Schedulable = 1e-6,
    threshold: Schedulable = 5000.0,
    delay: int = 20,
    reset_every: int = 500,
    warmup: int = 150,
    restart_bias_correction: bool = False,
    mu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by SPAM.

    w <- w - lr u, with the direction u of `scale_by_spam`, plus weight decay.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      b1: decay of m in [0, 1): a float, an array or a schedule.
      b2: decay of v in [0, 1), likewise.
      eps: beside the root of v before its bias is corrected, at least 0, likewise.
      threshold: numbers are cut off at sqrt(threshold v): at least 0, likewise.
      delay: steps after the start and after a reset without a cut, at least 0 and less than `reset_every`;
        under `inject_hyperparams` a static argument, as are the next two.
      reset_every: steps between the resets of m and v, at least 1.
      warmup: steps after a reset in which the direction grows to its full length, at least 0.
      restart_bias_correction: whether the bias corrections begin anew with m and v; see `scale_by_spam`.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      decay: "decoupled" adds weight_decay w to the direction, "coupled" to the clipped gradient.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = spam(1e-3)
      >>> print(descent.update(jnp.array([3.0, -4.0]), descent.init(jnp.zeros(2)))[0].round(5))
      [-0.001  0.001]

    References:
      Huang et al., `SPAM: Spike-aware Adam with momentum reset for stable LLM training
      <https://arxiv.org/abs/2501.06842>`_, 2025.

    The authors' optional mask of parameters is not here. Their weight decay acts on the weights after the step.
    """
    return optimizer(
        _spam(b1, b2, eps, threshold, delay, reset_every, warmup, restart_bias_correction, mu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
