"""NovoGrad: gradients normalized per tensor, then momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_number
from novoclip.granularity import resolve_fixed
from novoclip.measure import Measure, norm_shapes
from novoclip.optimizers.algorithm import Algorithm, check_dtype, optimizer, scale_by
from novoclip.optimizers.moments import block_sizes, divide, real_zeros, root_average, zeros
from novoclip.optimizers.step import Step, add_decay, check_decay


class NovoGradState(NamedTuple):
    """What NovoGrad remembers.

    Attributes:
      mu: m, a tree like the parameters.
      root: sqrt(v), a vector over the tensors, or whatever `per` names.
    """

    mu: Any
    root: jax.Array


def _novograd(
    b1: Schedulable,
    b2: Schedulable,
    eps: Schedulable,
    weight_decay: Schedulable | None,
    weight_decay_mask: Any,
    per: str | Measure,
    mu_dtype: Any,
) -> Algorithm:
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0)
    check_number("eps", eps)
    check_decay(weight_decay, weight_decay_mask)
    check_dtype("mu_dtype", mu_dtype)
    blocks = resolve_fixed(per)

    def init(shapes: Any) -> NovoGradState:
        return NovoGradState(zeros(shapes, mu_dtype), real_zeros(norm_shapes(blocks, shapes)))

    def learn(gradients: Any, state: NovoGradState, step: Step) -> NovoGradState:
        norms = block_sizes(blocks, gradients)
        learned = root_average(norms, state.root, step.decay(b2, "b2"))
        root = jax.tree.map(lambda old, new, norm: jnp.where(old > 0, new, norm), state.root, learned, norms)
        pulled = divide(gradients, blocks.spread(root, gradients), step.epsilon(eps, "eps"))
        pulled = add_decay(pulled, step, rate=weight_decay, mask=weight_decay_mask)
        by, _ = step.decay(b1, "b1")
        return NovoGradState(jax.tree.map(lambda u, m: by * m + u, pulled, state.mu), root)

    def direction(gradients: Any, state: NovoGradState, step: Step) -> Any:
        del gradients, step
        return state.mu

    return Algorithm(init, learn, direction, f"novograd per {blocks.name}")


def scale_by_novograd(
    b1: Schedulable = 0.95,
    b2: Schedulable = 0.98,
    *,
    eps: Schedulable = 1e-8,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    per: str | Measure = "tensor",
    mu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Normalize each tensor's gradient by its running norm, then take momentum (NovoGrad).

    For each tensor v_t = b2 v_{t-1} + (1 - b2) ||g_t||^2, begun with the first ||g||^2 that is not 0;
    m_t = b1 m_{t-1} + g_t / (sqrt(v_t) + eps) + weight_decay w;  u = m_t.

    Args:
      b1: decay of m in [0, 1]: a float, an array or a schedule. There is no factor 1 - b1: u may be
        1 / (1 - b1) tensor norms long, and learning rates are near 0.01.
      b2: decay of v in [0, 1], likewise.
      eps: at least 0, likewise.
      weight_decay: inside the moment, at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      per: the blocks: "tensor", as published, "tree", "unit", or a Measure, such as
        `novoclip.tensors(stacked=1)`, of which only the blocks count.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

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
    """
    return scale_by(_novograd(b1, b2, eps, weight_decay, weight_decay_mask, per, mu_dtype), nonfinite=nonfinite)


def novograd(
    learning_rate: Schedulable,
    b1: Schedulable = 0.95,
    b2: Schedulable = 0.98,
    *,
    eps: Schedulable = 1e-8,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    per: str | Measure = "tensor",
    mu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by NovoGrad.

    w <- w - lr u, with the direction u of `scale_by_novograd`.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      b1: decay of m in [0, 1]: a float, an array or a schedule. There is no factor 1 - b1: u may be
        1 / (1 - b1) tensor norms long, and learning rates are near 0.01.
      b2: decay of v in [0, 1], likewise.
      eps: at least 0, likewise.
      weight_decay: inside the moment, at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      per: the blocks: "tensor", as published, "tree", "unit", or a Measure, such as
        `novoclip.tensors(stacked=1)`, of which only the blocks count.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      clip: any rule, applied to the gradient first.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `NovoGradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = novograd(0.01)
      >>> print(descent.update(jnp.array([3.0, 4.0]), descent.init(jnp.zeros(2)))[0])
      [-0.006 -0.008]

    References:
      Ginsburg et al., `Training deep networks with stochastic gradient normalized by layerwise
      adaptive second moments <https://arxiv.org/abs/1905.11286>`_, 2019.

    Optax begins v with the first gradient even if it is 0, after which the next step is
    1 / sqrt(1 - b2) times too long, and has b1 = 0.9, b2 = 0.25.
    """
    return optimizer(
        _novograd(b1, b2, eps, weight_decay, weight_decay_mask, per, mu_dtype),
        learning_rate,
        clip=clip,
        nonfinite=nonfinite,
    )
