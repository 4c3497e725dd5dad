"""The NovoGrad optimizer: gradients normalized per tensor, then momentum."""

from __future__ import annotations

from typing import Any

import optax

from novoclip.optimizers.algorithm import optimizer, scale_by
from novoclip.optimizers.novograd_algorithm import (
    Averaging,
    DecayPlace,
    NovoGradState,
    Order,
    Start,
    Variant,
    novograd_algorithm,
)
from novoclip.typing import Clip, Granularity, Mask, Norm, ScalarOrSchedule, SkipNonfinite

__all__ = ["NovoGradState", "novograd", "scale_by_novograd"]


def scale_by_novograd(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.25,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    *,
    weight_decay_mask: Mask = None,
    per: Granularity = "tensor",
    nonfinite: SkipNonfinite = "skip",
    start: Start = "nonzero",
    averaging: Averaging = "never",
    amsgrad: bool = False,
    norm: Norm = "l2",
    normalize: Order = "before",
    weight_decay_mode: DecayPlace = "moment",
    bias_correction_mu: bool = False,
    bias_correction_nu: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by NovoGrad: each tensor divided by its running norm, then momentum.

    For each tensor v_t = b2 v_{t-1} + (1 - b2) ||g_t||^2, which starts with the first ||g||^2 that is not 0;
    m_t = b1 m_{t-1} + g_t / (sqrt(v_t + eps_root) + eps) + weight_decay w;  u = m_t. The options change parts of this.

    Args:
      b1: decay rate of m in [0, 1]: a float, an array or a schedule. Without `averaging` there is no factor 1 - b1: u
        may be 1 / (1 - b1) tensor norms long, so that learning rates are near 0.01.
      b2: decay rate of v in [0, 1]: a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      per: the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a Measure,
        such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.
      start: how v begins: "nonzero", with the first gradient of the tensor that is not 0; "first", with the first
        gradient, even if it is 0; "zero", from 0, with bias_correction_nu.
      averaging: the weight of what is added to m: 1 with "never"; 1 - b1 with "always"; with "later" 1 - b1 too,
        except that the first is added whole.
      amsgrad: whether to divide by the largest v so far instead of v.
      norm: norm of a tensor: "l2", as published, "rms", "l1" or "max". With the last two, v is a mean of norms instead
        of their squares, and no root is taken.
      normalize: "before" momentum, as published, or "after": then m is of the raw gradients, u = m / (sqrt(v) + eps),
        and weight decay must be decoupled.
      weight_decay_mode: "moment" adds weight_decay w inside m, as published; "decoupled" adds it to u.
      bias_correction_mu: whether to divide m by 1 - b1^t. With averaging="later" it has no effect.
      bias_correction_nu: with start="zero", whether to divide v by 1 - b2^t; otherwise it has no effect.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `NovoGradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_novograd()
      >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1e-3])}
      >>> print(rule.update(gradients, rule.init(gradients))[0]["a"])
      [0.6 0.8]

    References:
      Ginsburg et al., `Training deep networks with stochastic gradient normalized by layerwise
      adaptive second moments <https://arxiv.org/abs/1905.11286>`_, 2019.

    Parameters, order and defaults are those of `optax.scale_by_novograd`; see `novograd` for the differences and for
    the options of other implementations. Layer-wise update clipping is in `novograd` alone: it needs the learning rate.
    """
    variant = Variant(
        start, averaging, amsgrad, norm, normalize, weight_decay_mode, bias_correction_mu, bias_correction_nu
    )
    algorithm = novograd_algorithm(b1, b2, eps, eps_root, weight_decay, weight_decay_mask, per, mu_dtype, variant)
    return scale_by(algorithm, nonfinite=nonfinite)


def novograd(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.25,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    *,
    weight_decay_mask: Mask = None,
    per: Granularity = "tensor",
    mu_dtype: Any = None,
    clip: Clip = None,
    nonfinite: SkipNonfinite = "skip",
    start: Start = "nonzero",
    averaging: Averaging = "never",
    amsgrad: bool = False,
    norm: Norm = "l2",
    normalize: Order = "before",
    weight_decay_mode: DecayPlace = "moment",
    bias_correction_mu: bool = False,
    bias_correction_nu: bool = True,
    luc: ScalarOrSchedule | None = None,
    luc_eps: ScalarOrSchedule = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """The NovoGrad optimizer, with optional clipping.

    w <- w - lr u, with the direction u of `scale_by_novograd`. With `luc`, as in NeMo, the learning rate of a tensor is
    min(lr, luc ||w|| / (||u|| + luc_eps)): a tensor of zeros then stays as it is. Decoupled decay has the rate lr.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of m in [0, 1]: a float, an array or a schedule. Without `averaging` there is no factor 1 - b1: u
        may be 1 / (1 - b1) tensor norms long, so that learning rates are near 0.01.
      b2: decay rate of v in [0, 1]: a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      per: the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a Measure,
        such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.
      start: how v begins: "nonzero", with the first gradient of the tensor that is not 0; "first", with the first
        gradient, even if it is 0; "zero", from 0, with bias_correction_nu.
      averaging: the weight of what is added to m: 1 with "never"; 1 - b1 with "always"; with "later" 1 - b1 too,
        except that the first is added whole.
      amsgrad: whether to divide by the largest v so far instead of v.
      norm: norm of a tensor: "l2", as published, "rms", "l1" or "max". With the last two, v is a mean of norms instead
        of their squares, and no root is taken.
      normalize: "before" momentum, as published, or "after": then m is of the raw gradients, u = m / (sqrt(v) + eps),
        and weight decay must be decoupled.
      weight_decay_mode: "moment" adds weight_decay w inside m, as published; "decoupled" adds it to u.
      bias_correction_mu: whether to divide m by 1 - b1^t. With averaging="later" it has no effect.
      bias_correction_nu: with start="zero", whether to divide v by 1 - b2^t; otherwise it has no effect.
      luc: trust coefficient of layer-wise update clipping, at least 0: a float, an array or a schedule; None for none.
      luc_eps: added to the norm of u there, at least 0: a float, an array or a schedule.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `NovoGradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay or luc and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = novograd(0.01)
      >>> print(optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(jnp.zeros(2)))[0])
      [-0.006 -0.008]

    References:
      Ginsburg et al., `Training deep networks with stochastic gradient normalized by layerwise
      adaptive second moments <https://arxiv.org/abs/1905.11286>`_, 2019.

    Parameters, order and defaults are those of `optax.novograd`; the paper has b1 = 0.95 and b2 = 0.98, and
    `novoclip.presets.novograd_preset` the settings of published trainings. Differences to Optax: a first gradient of 0
    leaves v unset, unless start="first" (in Optax the next step of that tensor is 1 / sqrt(1 - b2) times too long), the
    parameters are needed only for weight decay and luc, and what `adam` differs in. Other implementations, beside the
    defaults:

    | implementation | arguments |
    |---|---|
    | timm, NeMo | `b1=0.95, b2=0.98, eps=1e-8`; grad_averaging is `averaging="always"`; luc_trust is `luc` |
    | TensorFlow Addons | `b2=0.999, eps=1e-7, start="first"`; grad_averaging is `averaging="later"` |
    | OpenSeq2Seq, as documented | `b1=0.95, b2=0.98, eps=0.0, eps_root=1e-8` |
    | apex, init_zero | `b2=0.999, eps=1e-8, start="zero", averaging="always", bias_correction_mu=True` |
    | apex, reg_inside_moment=False | the same with `normalize="after", weight_decay_mode="decoupled"` |
    | apex, norm_type=0 | `norm="max"` |

    Not covered: apex divides a v that begins with the first norm by 1 - b2^t, which makes its first step
    1 / sqrt(1 - b2) times too short, and takes the root of 1 - b2^t for the largest absolute value too; TensorFlow
    Addons has the learning rate inside the momentum, which differs under a schedule; pytorch_optimizer and
    convergence-lab add the first gradient to m twice. None of them treats tensors of one axis apart, nor does this: to
    exclude them from weight decay, use the mask.

    mu_dtype also takes "int8" and "bfloat16_stochastic", which `adam` describes.
    """
    variant = Variant(
        start, averaging, amsgrad, norm, normalize, weight_decay_mode, bias_correction_mu, bias_correction_nu
    )
    algorithm = novograd_algorithm(
        b1, b2, eps, eps_root, weight_decay, weight_decay_mask, per, mu_dtype, variant, luc, luc_eps
    )
    return optimizer(algorithm, learning_rate, clip=clip, nonfinite=nonfinite)
