"""The NovoClip optimizer: elements clipped at limits from the second moment, in an update like Adam's."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import optax

from novoclip.arguments import check_choice, check_flag, check_number
from novoclip.granularity import resolve_fixed
from novoclip.measure import norm_shapes
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.kept import check_dtypes
from novoclip.optimizers.moments import (
    average,
    block_sizes,
    debiased,
    divide,
    ones_average,
    over_root,
    real_zeros,
    root_average,
    scalar,
    zeros,
)
from novoclip.optimizers.step import Step
from novoclip.optimizers.thresholds import CLIPPING, inverse, proportional, root_after, weight_after
from novoclip.typing import Clip, DecayMode, Granularity, Mask, ScalarOrSchedule, SkipNonfinite


class NovoClipState(NamedTuple):
    """The state of NovoClip.

    Attributes:
      mu: m, a pytree like the parameters.
      root: sqrt(v): a pytree like the parameters, or a vector over the tensors.
      mu_weight: 1 - b1_1 b1_2 ... b1_t, the weight of the gradients in m.
      root_weight: the weight of the gradients in v. In the proportional form a pytree like `root`, since blocks whose
        gradient is 0 learn nothing.
    """

    mu: Any
    root: Any
    mu_weight: jax.Array
    root_weight: Any


def _novoclip(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    clipping: ScalarOrSchedule | None,
    threshold: str,
    per: Granularity,
    bias_correction: bool,
    mu_dtype: Any,
    nu_dtype: Any,
) -> Algorithm:
    check_choice("threshold", threshold, tuple(CLIPPING))
    blocks = resolve_fixed(per, elements=True)
    scale = CLIPPING[threshold] if clipping is None else clipping
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0, exclude_high=True)
    check_number("eps", eps)
    # Below one standard deviation the limit would shrink at every step, towards 0.
    check_number("clipping", scale, low=1.0 if threshold == "proportional" else 0.0)
    check_flag("bias_correction", bias_correction)
    check_dtypes(mu_dtype=mu_dtype, nu_dtype=nu_dtype)

    def init(shapes: Any) -> NovoClipState:
        roots = norm_shapes(blocks, shapes)
        weight = scalar(shapes) if threshold == "inverse" else real_zeros(roots)
        return NovoClipState(zeros(shapes, mu_dtype), real_zeros(roots, nu_dtype), scalar(shapes), weight)

    def learn(gradients: Any, state: NovoClipState, step: Step) -> NovoClipState:
        first, second, by = step.decay(b1, "b1"), step.decay(b2, "b2"), step.value(scale, "clipping")
        mu_weight = ones_average(state.mu_weight, first)
        if threshold == "inverse":
            root = root_average(block_sizes(blocks, gradients), state.root, second)
            return NovoClipState(state.mu, root, mu_weight, ones_average(state.root_weight, second))
        mu = average(proportional(gradients, state, blocks, by), state.mu, first)
        return state._replace(mu=mu, mu_weight=mu_weight)

    def follow(gradients: Any, state: NovoClipState, before: NovoClipState, step: Step) -> NovoClipState:
        by = step.value(scale, "clipping")
        if threshold == "proportional":
            return root_after(gradients, state, before, blocks, step.decay(b2, "b2"), by)
        return state._replace(mu=average(inverse(gradients, state.root, blocks, by), before.mu, step.decay(b1, "b1")))

    def follow_root(gradients: Any, state: NovoClipState, before: NovoClipState, step: Step) -> NovoClipState:
        return weight_after(gradients, state, before, step.decay(b2, "b2"))

    def direction(gradients: Any, state: NovoClipState, step: Step) -> Any:
        mu = debiased(state.mu, state.mu_weight) if bias_correction else state.mu
        root = over_root(state.root, state.root_weight) if bias_correction else state.root
        return divide(mu, blocks.spread(root, gradients), step.epsilon(eps, "eps"))

    followed = (follow, follow_root) if threshold == "proportional" and blocks.elementwise else (follow,)
    return Algorithm(init, learn, direction, f"novoclip(threshold={threshold!r}) per {blocks.name}", followed)


def scale_by_novoclip(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    *,
    eps: ScalarOrSchedule = 1e-8,
    clipping: ScalarOrSchedule | None = None,
    threshold: Literal["inverse", "proportional"] = "inverse",
    per: Granularity = "element",
    bias_correction: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by NovoClip: elements clipped at a limit from their second moment, then as in Adam.

        v_t = b2 v_{t-1} + (1 - b2) g_t^2;  C_t = clipping / sqrt(v_t), infinite where v_t = 0    "inverse"
        C_t = clipping sqrt(v_{t-1} / (1 - b2^(t-1)));  v_t from g_t' in place of g_t            "proportional"
        g_t' = clip(g_t, -C_t, C_t);  m_t = b1 m_{t-1} + (1 - b1) g_t';  u = m_t / (sqrt(v_t) + eps)

    In the inverse form, which is the published one, an element is clipped when |g| sqrt(v) > clipping. The right value
    depends on the gradients' scale: at 1.0, gradients near 1e-3 are never clipped, those near 1e3 always. A spike also
    enters v whole, which shortens the steps for some 1 / (1 - b2) steps. The proportional form does not depend on the
    scale, and keeps spikes out of v. It has no limit until a gradient is not 0, and its v skips zeros: there t counts
    the other gradients. With bias correction it trained through the gradient spikes of `examples/train_lm.py` at
    every scale, where the inverse form did not.

    Args:
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of v, at least 0: a float, an array or a schedule.
      clipping: for "inverse" C in squared gradient units, 1.0 by default; for "proportional" a number of standard
        deviations, at least 1, 3.0 by default: a float, an array or a schedule.
      threshold: "inverse" or "proportional".
      per: "element" keeps a v for each element; "tensor", "tree", "unit" or a Measure, such as
        `novoclip.tensors(stacked=1)`, keeps one for each block, from the squared norm of its gradient, as NovoGrad
        does. There the proportional form compares with sqrt(v / size), with the block's number of elements as size.
      bias_correction: whether to divide m and v by the weights of the gradients in them. Without, the first steps are
        (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nu_dtype: dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 bits,
        rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `NovoClipState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_novoclip(0.0, threshold="proportional", bias_correction=True)
      >>> state = rule.init(jnp.zeros(2))
      >>> for gradient in ([1.0, 1.0], [1.0, 100.0]):
      ...     updates, state = rule.update(jnp.array(gradient), state)
      >>> [round(float(update), 2) for update in updates]
      [1.0, 1.34]

    References:
      Kingma, Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, 2014.
      Ginsburg et al., `Training deep networks with stochastic gradient normalized by layerwise
      adaptive second moments <https://arxiv.org/abs/1905.11286>`_, 2019, for v per tensor.

    The defaults are those of `novoclip`.
    """
    algorithm = _novoclip(b1, b2, eps, clipping, threshold, per, bias_correction, mu_dtype, nu_dtype)
    return scale_by(algorithm, nonfinite=nonfinite)


def novoclip(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    *,
    eps: ScalarOrSchedule = 1e-8,
    clipping: ScalarOrSchedule | None = None,
    threshold: Literal["inverse", "proportional"] = "inverse",
    per: Granularity = "element",
    bias_correction: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The NovoClip optimizer, with optional clipping and weight decay.

    The published form, threshold="inverse" with the limit C / sqrt(v), cannot work unless C suits the gradients' scale:
    at 1.0, gradients near 1e-3 are never clipped, those near 1e3 always, and a spike enters v whole. Write
    `novoclip(threshold="proportional", bias_correction=True)` instead.

    w <- w - lr u, with the direction u of `scale_by_novoclip`, plus weight decay.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of v, at least 0: a float, an array or a schedule.
      clipping: for "inverse" C, 1.0 by default; for "proportional" a number of standard deviations, 3.0 by default.
      threshold: "inverse" or "proportional".
      per: "element" keeps a v for each element; "tensor", "tree", "unit" or a Measure keeps one for each block.
      bias_correction: whether to divide m and v by the weights of the gradients in them. Without, the first steps are
        (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nu_dtype: dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 bits,
        rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      weight_decay_mode: "decoupled" adds weight_decay * w to the update, before the learning rate (AdamW); "coupled"
        adds it to the clipped gradients (L2 regularization).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `NovoClipState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, a name unknown, or, in `update`, parameters that decay are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = novoclip(threshold="proportional", bias_correction=True)
      >>> print(optimizer.update(jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2)))[0])
      [-0.001  0.001]

    References:
      Kingma, Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, 2014.

    Defaults: Adam's, and the published form's; clipping=3.0 for "proportional" was measured, see docs/optimizers.md.
    """
    return optimizer(
        _novoclip(b1, b2, eps, clipping, threshold, per, bias_correction, mu_dtype, nu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
