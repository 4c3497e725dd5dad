"""The NovoGrad optimizer: gradients normalized per tensor, then momentum."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_number
from novoclip.granularity import resolve_fixed
from novoclip.measure import norm_shapes
from novoclip.optimizers.algorithm import Algorithm, check_dtype, optimizer, scale_by
from novoclip.optimizers.moments import block_sizes, divide, real_zeros, root_average, zeros
from novoclip.optimizers.step import MASK, Step, add_decay, check_decay
from novoclip.typing import Clip, Granularity, Mask, ScalarOrSchedule, SkipNonfinite


class NovoGradState(NamedTuple):
    """The state of NovoGrad.

    Attributes:
      mu: m, a pytree like the parameters.
      root: sqrt(v), a vector over the tensors, or whatever `per` names.
    """

    mu: Any
    root: jax.Array


def _novograd(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    eps_root: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule | None,
    weight_decay_mask: Mask,
    per: Granularity,
    mu_dtype: Any,
) -> Algorithm:
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0)
    check_number("eps", eps)
    check_number("eps_root", eps_root)
    check_decay(weight_decay, weight_decay_mask)
    check_dtype("mu_dtype", mu_dtype)
    blocks = resolve_fixed(per)

    def init(shapes: Any) -> NovoGradState:
        return NovoGradState(zeros(shapes, mu_dtype), real_zeros(norm_shapes(blocks, shapes)))

    def learn(gradients: Any, state: NovoGradState, step: Step) -> NovoGradState:
        norms = block_sizes(blocks, gradients)
        learned = root_average(norms, state.root, step.decay(b2, "b2"))
        root = jax.tree.map(lambda old, new, norm: jnp.where(old > 0, new, norm), state.root, learned, norms)
        roots, inside = blocks.spread(root, gradients), step.unless_zero(eps_root, "eps_root")
        pulled = divide(gradients, roots, step.epsilon(eps, "eps"), inside)
        pulled = add_decay(pulled, step, rate=weight_decay, mask=weight_decay_mask)
        by, _ = step.decay(b1, "b1")
        return NovoGradState(jax.tree.map(lambda u, m: by * m + u, pulled, state.mu), root)

    def direction(gradients: Any, state: NovoGradState, step: Step) -> Any:
        del gradients, step
        return state.mu

    return Algorithm(init, learn, direction, f"novograd per {blocks.name}", masks=((MASK, weight_decay_mask),))


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
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by NovoGrad: each tensor divided by its running norm, then momentum.

    For each tensor v_t = b2 v_{t-1} + (1 - b2) ||g_t||^2, which starts with the first ||g||^2 that is not 0;
    m_t = b1 m_{t-1} + g_t / (sqrt(v_t + eps_root) + eps) + weight_decay w;  u = m_t.

    Args:
      b1: decay rate of m in [0, 1]: a float, an array or a schedule. There is no factor 1 - b1: u may be
        1 / (1 - b1) tensor norms long, so that learning rates are near 0.01.
      b2: decay rate of v in [0, 1]: a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      weight_decay: strength of the weight decay inside the moment, at least 0: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      per: the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a Measure,
        such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

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

    Parameters, order and defaults are those of `optax.scale_by_novograd`; see `novograd` for the differences.
    """
    algorithm = _novograd(b1, b2, eps, eps_root, weight_decay, weight_decay_mask, per, mu_dtype)
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
) -> optax.GradientTransformationExtraArgs:
    """The NovoGrad optimizer, with optional clipping.

    w <- w - lr u, with the direction u of `scale_by_novograd`.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of m in [0, 1]: a float, an array or a schedule. There is no factor 1 - b1: u may be
        1 / (1 - b1) tensor norms long, so that learning rates are near 0.01.
      b2: decay rate of v in [0, 1]: a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      weight_decay: strength of the weight decay inside the moment, at least 0: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      per: the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a Measure,
        such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `NovoGradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = novograd(0.01)
      >>> print(optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(jnp.zeros(2)))[0])
      [-0.006 -0.008]

    References:
      Ginsburg et al., `Training deep networks with stochastic gradient normalized by layerwise
      adaptive second moments <https://arxiv.org/abs/1905.11286>`_, 2019.

    Parameters, order and defaults are those of `optax.novograd`; the paper has b1 = 0.95 and b2 = 0.98. Differences:
    a first gradient of 0 leaves v unset (in Optax the next step of that tensor is 1 / sqrt(1 - b2) times too long),
    the parameters are needed only for weight decay, and what `adam` differs in.
    """
    return optimizer(
        _novograd(b1, b2, eps, eps_root, weight_decay, weight_decay_mask, per, mu_dtype),
        learning_rate,
        clip=clip,
        nonfinite=nonfinite,
    )
