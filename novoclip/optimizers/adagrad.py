"""Adagrad, per number, and AdaGrad-Norm, per tensor or for the whole tree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Number, Schedulable, check_number
from novoclip.granularity import resolve_fixed
from novoclip.measure import Measure, norm_shapes
from novoclip.optimizers.algorithm import Algorithm, check_dtype, optimizer, scale_by
from novoclip.optimizers.moments import block_sizes, divide, fitting, real_zeros
from novoclip.optimizers.step import Step
from novoclip.safe_math import hypotenuse


class AdagradState(NamedTuple):
    """What Adagrad remembers.

    Attributes:
      root: sqrt(G): a tree like the parameters, a vector over the tensors, or a scalar. The
        root, because a sum of squares overflows at norms that can be represented.
    """

    root: Any


def _adagrad(
    eps: Schedulable, eps_root: Schedulable, initial_accumulator: Number, per: str | Measure, nu_dtype: Any
) -> Algorithm:
    for name, number in (("eps", eps), ("eps_root", eps_root), ("initial_accumulator", initial_accumulator)):
        check_number(name, number)
    check_dtype("nu_dtype", nu_dtype)
    blocks = resolve_fixed(per, elements=True)

    def init(shapes: Any) -> AdagradState:
        roots = norm_shapes(blocks, shapes)
        first = jnp.sqrt(jnp.asarray(initial_accumulator))
        return AdagradState(jax.tree.map(lambda x: x + first.astype(x.dtype), real_zeros(roots, nu_dtype)))

    def learn(gradients: Any, state: AdagradState, step: Step) -> AdagradState:
        del step

        def add(root: jax.Array, size: jax.Array) -> jax.Array:
            total = hypotenuse(root, fitting(size, root))
            # Not the minimum of it and a number, which XLA's CPU backend computes twice, with a copy of the old root.
            return jnp.where(total < jnp.inf, total, jnp.maximum(root, size))

        return AdagradState(jax.tree.map(add, state.root, block_sizes(blocks, gradients)))

    def direction(gradients: Any, state: AdagradState, step: Step) -> Any:
        roots = blocks.spread(state.root, gradients)
        return divide(gradients, roots, step.epsilon(eps, "eps"), step.unless_zero(eps_root, "eps_root"))

    return Algorithm(init, learn, direction, f"adagrad per {blocks.name}")


def scale_by_adagrad(
    *,
    eps: Schedulable = 1e-10,
    eps_root: Schedulable = 0.0,
    initial_accumulator: Number = 0.0,
    per: str | Measure = "element",
    nu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Divide the gradient by the root of the sum of all its squares so far (Adagrad).

    G_t = G_{t-1} + g_t^2;  u = g_t / (sqrt(G_t + eps_root) + eps), and 0 where that is 0 / 0.
    For AdaGrad-Norm, per "tensor" or "tree", g_t^2 is the squared norm of the block.

    Args:
      eps: outside of the root, at least 0: a float, an array or a schedule.
      eps_root: inside of it, likewise.
      initial_accumulator: G_0, at least 0. Optax and Keras have eps=0, eps_root=1e-7, initial_accumulator=0.1.
      per: "element" for Adagrad; for AdaGrad-Norm "tensor", "tree", "unit", or a Measure, such as
        `novoclip.tensors(stacked=1)`, of which only the blocks count.
      nu_dtype: the dtype in which sqrt(G) is kept; float32 by default (float64 for float64 parameters).
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdagradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_adagrad()
      >>> print(rule.update(jnp.array([3.0, -4.0, 0.0]), rule.init(jnp.zeros(3)))[0])
      [ 1. -1.  0.]
      >>> rule = scale_by_adagrad(per="tree")
      >>> print(rule.update(jnp.array([3.0, -4.0, 0.0]), rule.init(jnp.zeros(3)))[0])
      [ 0.6 -0.8  0. ]

    References:
      Duchi, Hazan, Singer, `Adaptive subgradient methods for online learning and stochastic
      optimization <https://jmlr.org/papers/v12/duchi11a.html>`_, 2011. Ward, Wu, Bottou, `AdaGrad
      stepsizes: sharp convergence over nonconvex landscapes <https://arxiv.org/abs/1806.01811>`_, 2018.
    """
    return scale_by(_adagrad(eps, eps_root, initial_accumulator, per, nu_dtype), nonfinite=nonfinite)


def adagrad(
    learning_rate: Schedulable,
    *,
    eps: Schedulable = 1e-10,
    eps_root: Schedulable = 0.0,
    initial_accumulator: Number = 0.0,
    per: str | Measure = "element",
    nu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by Adagrad, or by AdaGrad-Norm.

    w <- w - lr u, with the direction u of `scale_by_adagrad`, plus weight decay.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      eps: outside of the root, at least 0: a float, an array or a schedule.
      eps_root: inside of it, likewise.
      initial_accumulator: G_0, at least 0. Optax and Keras have eps=0, eps_root=1e-7, initial_accumulator=0.1.
      per: "element" for Adagrad; for AdaGrad-Norm "tensor", "tree", "unit", or a Measure, such as
        `novoclip.tensors(stacked=1)`, of which only the blocks count.
      nu_dtype: the dtype in which sqrt(G) is kept; float32 by default (float64 for float64 parameters).
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      decay: "decoupled" adds weight_decay w to the direction, "coupled" to the clipped gradient.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdagradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = adagrad(0.1)
      >>> print(descent.update(jnp.array([3.0, -4.0]), descent.init(jnp.zeros(2)))[0])
      [-0.1  0.1]

    References:
      Duchi, Hazan, Singer, `Adaptive subgradient methods for online learning and stochastic
      optimization <https://jmlr.org/papers/v12/duchi11a.html>`_, 2011. Ward, Wu, Bottou, `AdaGrad
      stepsizes: sharp convergence over nonconvex landscapes <https://arxiv.org/abs/1806.01811>`_, 2018.
    """
    return optimizer(
        _adagrad(eps, eps_root, initial_accumulator, per, nu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
