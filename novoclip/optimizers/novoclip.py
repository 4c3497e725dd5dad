"""NovoClip: numbers clipped at limits from the second moment, inside an update like Adam's."""

from typing import Any, NamedTuple

import jax
import optax

from novoclip.arguments import Schedulable, check_choice, check_flag, check_number
from novoclip.granularity import resolve_fixed
from novoclip.measure import Measure, norm_shapes
from novoclip.optimizers.algorithm import Algorithm, check_dtype, optimizer, scale_by
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
from novoclip.optimizers.thresholds import inverse, proportional

CLIPPING = {"inverse": 1.0, "proportional": 3.0}


class NovoClipState(NamedTuple):
    """What NovoClip remembers.

    Attributes:
      mu: m, a tree like the parameters.
      root: sqrt(v): a tree like the parameters, or a vector over the tensors.
      mu_weight: 1 - b1_1 b1_2 ... b1_t, the weight of the gradients in m.
      root_weight: that of v; in the proportional form like `root`, for blocks whose gradient is 0 learn nothing.
    """

    mu: Any
    root: Any
    mu_weight: jax.Array
    root_weight: Any


def _novoclip(
    b1: Schedulable,
    b2: Schedulable,
    eps: Schedulable,
    clipping: Schedulable | None,
    threshold: str,
    per: str | Measure,
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
    # Below one deviation the limit would fall at every step, towards 0.
    check_number("clipping", scale, low=1.0 if threshold == "proportional" else 0.0)
    check_flag("bias_correction", bias_correction)
    check_dtype("mu_dtype", mu_dtype)
    check_dtype("nu_dtype", nu_dtype)

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
        clipped, root, weight = proportional(gradients, state, blocks, second, by)
        return NovoClipState(average(clipped, state.mu, first), root, mu_weight, weight)

    def follow(gradients: Any, state: NovoClipState, before: NovoClipState, step: Step) -> NovoClipState:
        if threshold == "proportional":
            return state
        clipped = inverse(gradients, state.root, blocks, step.value(scale, "clipping"))
        return state._replace(mu=average(clipped, before.mu, step.decay(b1, "b1")))

    def direction(gradients: Any, state: NovoClipState, step: Step) -> Any:
        mu, root = state.mu, state.root
        if bias_correction:
            mu = debiased(mu, state.mu_weight)
            root = over_root(root, state.root_weight)
        root = blocks.spread(root, gradients)
        return divide(mu, root, step.epsilon(eps, "eps"))

    return Algorithm(init, learn, direction, f"novoclip(threshold={threshold!r}) per {blocks.name}", follow)


def scale_by_novoclip(
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    *,
    eps: Schedulable = 1e-8,
    clipping: Schedulable | None = None,
    threshold: str = "inverse",
    per: str | Measure = "element",
    bias_correction: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Clip each number at a limit from its second moment, then divide as Adam does (NovoClip).

        v_t = b2 v_{t-1} + (1 - b2) g_t^2;  C_t = clipping / sqrt(v_t), infinite where v_t = 0    "inverse"
        C_t = clipping sqrt(v_{t-1} / (1 - b2^(t-1)));  v_t from g_t' in place of g_t            "proportional"
        g_t' = clip(g_t, -C_t, C_t);  m_t = b1 m_{t-1} + (1 - b1) g_t';  u = m_t / (sqrt(v_t) + eps)

    In the inverse form, as published, a number is clipped when |g| sqrt(v) > clipping, so that
    the right value depends on the gradients' scale: at 1.0, gradients near 1e-3 are never clipped,
    those near 1e3 always; and v takes in a spike whole, which shortens the steps for some
    1 / (1 - b2) steps. The proportional form depends on no scale and keeps spikes out of v; it has
    no limit until a gradient is not 0, and its v passes zeros over: there t counts the others.
    With bias correction it came through the gradient storm of `examples/train_lm.py` at every
    scale, where the inverse form did not.

    Args:
      b1: decay of m in [0, 1): a float, an array or a schedule.
      b2: decay of v in [0, 1), likewise.
      eps: at least 0, likewise.
      clipping: C in squared gradient units, 1.0 by default ("inverse"), or a number of deviations,
        at least 1, 3.0 by default ("proportional"): a float, an array or a schedule.
      threshold: "inverse" or "proportional".
      per: "element" keeps a v for each number; "tensor", "tree", "unit" or a Measure, such as
        `novoclip.tensors(stacked=1)`, one for each block, from the squared norm of its gradient, as NovoGrad
        does. There the proportional form compares with sqrt(v / size).
      bias_correction: whether to divide m and v by the weights that they have gathered.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nu_dtype: that of sqrt(v), likewise.
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

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
    """
    algorithm = _novoclip(b1, b2, eps, clipping, threshold, per, bias_correction, mu_dtype, nu_dtype)
    return scale_by(algorithm, nonfinite=nonfinite)


def novoclip(
    learning_rate: Schedulable = 1e-3,
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    *,
    eps: Schedulable = 1e-8,
    clipping: Schedulable | None = None,
    threshold: str = "inverse",
    per: str | Measure = "element",
    bias_correction: bool = False,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by NovoClip.

    w <- w - lr u, with the direction u of `scale_by_novoclip`, plus weight decay.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      b1: decay of m in [0, 1): a float, an array or a schedule.
      b2: decay of v in [0, 1), likewise.
      eps: at least 0, likewise.
      clipping: C, 1.0 by default, or a number of deviations, 3.0 by default.
      threshold: "inverse" or "proportional".
      per: "element" keeps a v for each number; "tensor", "tree", "unit" or a Measure one for each block.
      bias_correction: whether to divide m and v by the weights that they have gathered.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nu_dtype: that of sqrt(v), likewise.
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      decay: "decoupled" adds weight_decay w to the direction, "coupled" to the gradient before its clip.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `NovoClipState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = novoclip(threshold="proportional", bias_correction=True)
      >>> print(descent.update(jnp.array([3.0, -4.0]), descent.init(jnp.zeros(2)))[0])
      [-0.001  0.001]

    References:
      Kingma, Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, 2014.
    """
    return optimizer(
        _novoclip(b1, b2, eps, clipping, threshold, per, bias_correction, mu_dtype, nu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
