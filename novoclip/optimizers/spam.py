"""The SPAM optimizer: Adam that clips spikes at its second moment and resets its moments at intervals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_flag, check_integer, check_number
from novoclip.optimizers.adam import AdamState, adam_algorithm
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.moments import debiased, divide
from novoclip.optimizers.step import Step
from novoclip.optimizers.thresholds import clipped_at
from novoclip.ranges import no_limit
from novoclip.typing import Clip, DecayMode, Mask, ScalarOrSchedule, SkipNonfinite


def _spam(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    threshold: ScalarOrSchedule,
    delay: int,
    reset_every: int,
    warmup: int,
    restart_bias_correction: bool,
    learn_zeros: bool,
    mu_dtype: Any,
) -> Algorithm:
    check_number("threshold", threshold)
    check_integer("delay", delay, low=0)
    check_integer("reset_every", reset_every, low=1)
    check_integer("warmup", warmup, low=0)
    if delay >= reset_every:
        msg = f"delay must be less than reset_every={reset_every}, or no spike is ever clipped; got delay={delay}"
        raise ValueError(msg)
    check_flag("restart_bias_correction", restart_bias_correction)
    check_flag("learn_zeros", learn_zeros)
    adam = adam_algorithm(b1, b2, eps, 0.0, mu_dtype)

    def learn(gradients: Any, state: AdamState, step: Step) -> AdamState:
        t = step.number + 1
        since = t % reset_every

        def kept(leaf: jax.Array) -> jax.Array:
            return jnp.where(since == 0, jnp.zeros((), leaf.dtype), leaf)

        mu, root = jax.tree.map(kept, (state.mu, state.root))
        weights = state.mu_weight, state.root_weight
        if restart_bias_correction:
            weights = kept(weights[0]), kept(weights[1])
        active = (t >= delay) & (since >= delay)
        factor = jnp.sqrt(step.value(threshold, "threshold"))

        def limit(r: jax.Array) -> jax.Array:
            limited = active if learn_zeros else active & (r > 0)
            return jnp.where(limited, factor * r, no_limit(r.dtype))

        limits = jax.tree.map(limit, root)
        return adam.learn(clipped_at(gradients, limits), AdamState(mu, root, *weights), step)

    def direction(gradients: Any, state: AdamState, step: Step) -> Any:
        del gradients
        t = step.number + 1
        since = jnp.where(t < reset_every, warmup, t % reset_every)
        angle = jnp.pi * since.astype(step.dtype) / (warmup + 1)
        fraction = jnp.where(since < warmup, 1 - 0.99 * (1 + jnp.cos(angle)) / 2, 1)
        # eps is added to the root before bias correction, as in the authors' code.
        by = jnp.sqrt(state.root_weight)
        scaled = divide(debiased(state.mu, state.mu_weight), state.root, step.epsilon(eps, "eps"))
        return jax.tree.map(lambda u: fraction.astype(u.dtype) * by.astype(u.dtype) * u, scaled)

    return Algorithm(adam.init, learn, direction, "spam")


def scale_by_spam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    *,
    eps: ScalarOrSchedule = 1e-6,
    threshold: ScalarOrSchedule = 5000.0,
    delay: int = 20,
    reset_every: int = 500,
    warmup: int = 150,
    restart_bias_correction: bool = False,
    learn_zeros: bool = False,
    mu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by SPAM: Adam with spikes clipped at its second moment, and moments reset at intervals.

    m and v as in Adam, from elements clipped at sqrt(threshold v_{t-1}), where v is not 0. Before each step t that is
    a multiple of `reset_every`, counted from 1, m and v are set to 0. k steps after it, for k < warmup, the direction
    is multiplied by 1 - 0.99 (1 + cos(pi k / (warmup + 1))) / 2. Spikes are clipped from `delay` steps after the start
    and after each reset.

    A threshold of 5000 passes elements of 71 standard deviations. Against outliers, a clipping rule before it, `clip=`
    in `spam`, does more.

    Args:
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of v before bias correction, at least 0: a float, an array or a schedule.
      threshold: limit of g^2 / v, at least 0: a float, an array or a schedule.
      delay: steps without clipping after the start and after each reset, at least 0 and less than `reset_every`. Under
        `inject_hyperparams`, `delay`, `reset_every` and `warmup` are static arguments.
      reset_every: steps between resets of m and v, at least 1.
      warmup: steps after a reset in which the direction grows to its full length; 0 for none.
      restart_bias_correction: whether the bias corrections start again with m and v. As published they do not, and the
        first directions after a reset are (1 - b1) / sqrt(1 - b2) times too long, which the warm-up hides. With a
        short warm-up, write True.
      learn_zeros: whether a v of 0 is a limit of 0 too, as published. An element whose gradients were 0 for `delay`
        steps after the start or a reset is then not learned until the next reset.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

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

    The defaults are those of the authors' code.
    """
    algorithm = _spam(
        b1, b2, eps, threshold, delay, reset_every, warmup, restart_bias_correction, learn_zeros, mu_dtype
    )
    return scale_by(algorithm, nonfinite=nonfinite)


def spam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    *,
    eps: ScalarOrSchedule = 1e-6,
    threshold: ScalarOrSchedule = 5000.0,
    delay: int = 20,
    reset_every: int = 500,
    warmup: int = 150,
    restart_bias_correction: bool = False,
    learn_zeros: bool = False,
    mu_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The SPAM optimizer, with optional clipping and weight decay.

    w <- w - lr u, with the direction u of `scale_by_spam`, plus weight decay.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of v before bias correction, at least 0: a float, an array or a schedule.
      threshold: limit of g^2 / v, at least 0: a float, an array or a schedule.
      delay: steps without clipping after the start and after each reset, at least 0 and less than `reset_every`. Under
        `inject_hyperparams`, `delay`, `reset_every` and `warmup` are static arguments.
      reset_every: steps between resets of m and v, at least 1.
      warmup: steps after a reset in which the direction grows to its full length; 0 for none.
      restart_bias_correction: whether the bias corrections start again with m and v; see `scale_by_spam`.
      learn_zeros: whether a v of 0 is a limit of 0 too, as published; see `scale_by_spam`.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      weight_decay_mode: "decoupled" adds weight_decay * w to the update, before the learning rate (AdamW); "coupled"
        adds it to the clipped gradients (L2 regularization).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = spam(1e-3)
      >>> print(optimizer.update(jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2)))[0].round(5))
      [-0.001  0.001]

    References:
      Huang et al., `SPAM: Spike-aware Adam with momentum reset for stable LLM training
      <https://arxiv.org/abs/2501.06842>`_, 2025.

    The defaults are those of the authors' code. Its optional mask of parameters is not here, and its weight decay acts
    on the weights after the step.
    """
    return optimizer(
        _spam(b1, b2, eps, threshold, delay, reset_every, warmup, restart_bias_correction, learn_zeros, mu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
