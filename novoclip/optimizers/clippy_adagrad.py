"""The Clippy optimizer: Adagrad whose steps are scaled down until each element is small compared to its weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_flag, check_initial, check_number
from novoclip.granularity import resolve_fixed
from novoclip.measure import norm_shapes
from novoclip.mesh import broadcast_like
from novoclip.optimizers.algorithm import Algorithm, optimizer
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.moments import block_sizes, divide, first_roots, real_zeros, root_sum
from novoclip.optimizers.step import Step
from novoclip.safe_math import hypotenuse, wide_ratio
from novoclip.typing import Clip, DecayMode, Granularity, Mask, Scalar, ScalarOrSchedule, SkipNonfinite


class ClippyAdagradState(NamedTuple):
    """The state of `clippy_adagrad`.

    Attributes:
      root: sqrt(G), a pytree like the parameters. The root, because a sum of squares overflows at norms that can be
        represented.
      root_before: sqrt(G) before the last step, which that step was divided by; `()` with
        `use_standard_accumulator_update`.
      norms: the largest |g| of each block at the last step.
      norms_after: the same after it was scaled. Their quotient is the authors' clipping factor.
    """

    root: Any
    root_before: Any
    norms: Any
    norms_after: Any


def _clippy_adagrad(
    initial_accumulator_value: Scalar,
    variable_relative_threshold: ScalarOrSchedule,
    accumulator_relative_threshold: ScalarOrSchedule,
    absolute_threshold: ScalarOrSchedule,
    eps_root: ScalarOrSchedule,
    clip_accumulator_update: bool,
    use_standard_accumulator_update: bool,
    per: Granularity,
    nu_dtype: Any,
) -> Algorithm:
    check_initial("initial_accumulator_value", initial_accumulator_value)
    thresholds = {
        "variable_relative_threshold": variable_relative_threshold,
        "accumulator_relative_threshold": accumulator_relative_threshold,
        "absolute_threshold": absolute_threshold,
    }
    for name, number in {**thresholds, "eps_root": eps_root}.items():
        check_number(name, number)
    _check_flags(clip_accumulator_update, use_standard_accumulator_update)
    check_dtype("nu_dtype", nu_dtype)
    blocks = resolve_fixed(per, "max")

    def init(shapes: Any) -> ClippyAdagradState:
        norms, started = norm_shapes(blocks, shapes), (shapes, nu_dtype, initial_accumulator_value)
        before = () if use_standard_accumulator_update else first_roots(*started)
        return ClippyAdagradState(first_roots(*started), before, real_zeros(norms), real_zeros(norms))

    def largest_steps(gradients: Any, root: Any, norms: Any, step: Step) -> Any:
        """Return the largest lr |u| / allowed of each block, for gradients that are divided by the largest of it."""
        by_weight, by_root, beside = (step.value(value, name) for name, value in thresholds.items())
        inside = jnp.sqrt(step.value(eps_root, "eps_root"))
        rate, most = step.learning_rate, jnp.finfo(step.dtype).max
        divisors = jax.tree.map(lambda size: jnp.where(size > 0, size, 1), norms)

        def each(g: jax.Array, w: jax.Array, r: jax.Array, size: jax.Array) -> jax.Array:
            size_of_step = rate * wide_ratio(jnp.abs(g), broadcast_like(size, g))
            below = hypotenuse(r.astype(step.dtype), inside)
            # Compared after multiplication by sqrt(G + eps), since a quotient by a G of 0 would be infinite.
            allowed = (by_weight * jnp.abs(w) + beside) * below + by_root
            part = wide_ratio(size_of_step, jnp.where(allowed > 0, allowed, 1))
            return jnp.where(allowed > 0, part, jnp.where(size_of_step > 0, most, 0))

        return blocks.norms(jax.tree.map(each, gradients, step.weights, root, blocks.spread(divisors, gradients)))

    def learn(gradients: Any, state: ClippyAdagradState, step: Step) -> ClippyAdagradState:
        _check_params(step)
        root = root_sum(gradients, state.root) if use_standard_accumulator_update else state.root
        norms = block_sizes(blocks, gradients)
        after = jax.tree.map(_scaled_norm, norms, largest_steps(gradients, root, norms, step))
        if use_standard_accumulator_update:
            return ClippyAdagradState(root, (), norms, after)
        clipped = blocks.rescale(gradients, norms, after) if clip_accumulator_update else gradients
        learned = root_sum(clipped, state.root)
        return ClippyAdagradState(learned, state.root, norms, after)

    def direction(gradients: Any, state: ClippyAdagradState, step: Step) -> Any:
        root = state.root if use_standard_accumulator_update else state.root_before
        scaled = blocks.rescale(gradients, state.norms, state.norms_after)
        return divide(scaled, root, step.epsilon(0.0, "eps"), step.unless_zero(eps_root, "eps_root"))

    name = f"clippy_adagrad(use_standard_accumulator_update={use_standard_accumulator_update}) per {blocks.name}"
    return Algorithm(init, learn, direction, name)


def _check_flags(clip_accumulator_update: Any, use_standard_accumulator_update: Any) -> None:
    check_flag("clip_accumulator_update", clip_accumulator_update)
    check_flag("use_standard_accumulator_update", use_standard_accumulator_update)
    if clip_accumulator_update and use_standard_accumulator_update:
        msg = "clip_accumulator_update needs the accumulator from before the step: got "
        msg += "use_standard_accumulator_update=True too, write only one of them"
        raise ValueError(msg)


def _check_params(step: Step) -> None:
    if step.params is None:
        msg = "clippy_adagrad compares steps with the parameters: got params=None, "
        msg += "call update(updates, state, params)"
        raise ValueError(msg)


def _scaled_norm(norm: jax.Array, part: jax.Array) -> jax.Array:
    """Return the norm, at most 1 / part; a part of the largest float means that no step is allowed."""
    limit = wide_ratio(jnp.ones_like(part), jnp.where(part > 0, part, 1))
    limit = jnp.where(part < jnp.finfo(part.dtype).max, limit, 0)
    return jnp.where(part > 0, jnp.minimum(norm, limit.astype(norm.dtype)), norm)


def clippy_adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: Scalar = 0.1,
    variable_relative_threshold: ScalarOrSchedule = 0.1,
    accumulator_relative_threshold: ScalarOrSchedule = 0.0,
    absolute_threshold: ScalarOrSchedule = 1e-7,
    eps_root: ScalarOrSchedule = 1e-7,
    *,
    clip_accumulator_update: bool = False,
    use_standard_accumulator_update: bool = False,
    per: Granularity = "tensor",
    nu_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The Clippy optimizer: Adagrad with steps that are small compared to the weights, with optional weight decay.

    u = g_t / sqrt(G_{t-1} + eps_root);  G_t = G_{t-1} + g_t^2;  w <- w - lr s u, where s in [0, 1] is for each tensor
    the largest factor with
        lr s |u| <= variable_relative_threshold |w| + accumulator_relative_threshold / sqrt(G + eps_root)
                    + absolute_threshold
    in all its elements, G being that of u. Weight decay is not scaled.

    With the defaults, which are the authors', a single weight of 0 stops its whole tensor: biases, embeddings and
    adapters that start at 0 never change. An `absolute_threshold` of 1e-2, as in their paper, prevents that. The
    clipping alone, for any optimizer, is `novoclip.clippy`.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      initial_accumulator_value: G_0, at least 0: a float or an array.
      variable_relative_threshold: allowed step as a fraction of the weight, at least 0: a float, an array or a
        schedule.
      accumulator_relative_threshold: allowed step in addition, as a multiple of 1 / sqrt(G + eps_root), at least 0: a
        float, an array or a schedule.
      absolute_threshold: allowed step in addition, at least 0, in the parameters' units: a float, an array or a
        schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      clip_accumulator_update: whether G learns the scaled gradient s g instead of g, as for gradients with outliers.
      use_standard_accumulator_update: whether G learns g before the step is divided by it, as in Adagrad. The state
        then has one copy of the parameters less.
      per: the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a Measure,
        such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
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
      A GradientTransformation with an `OptimizerState` whose `moments` are a `ClippyAdagradState`; `update` needs the
      parameters, and updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, a name is unknown, or both `clip_accumulator_update` and
        `use_standard_accumulator_update` are True. In `update`: if the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = clippy_adagrad(1.0, 1.0, 0.25, absolute_threshold=0.0, eps_root=0.0)
      >>> params = jnp.array([1.0, -2.0])
      >>> print(optimizer.update(jnp.array([0.5, 0.125]), optimizer.init(params), params)[0])
      [-0.25   -0.0625]

    References:
      Tang et al., `Improving training stability for multitask ranking models in recommender systems
      <https://arxiv.org/abs/2302.09178>`_, 2023.

    Equal to `ClippyAdagrad` of tensorflow_recommenders, whose `epsilon` is `eps_root`, and whose clipping factors are
    `norms_after` / `norms` here. The paper has a learning rate of 1, the authors' code one of 0.001.
    """
    algorithm = _clippy_adagrad(
        initial_accumulator_value,
        variable_relative_threshold,
        accumulator_relative_threshold,
        absolute_threshold,
        eps_root,
        clip_accumulator_update,
        use_standard_accumulator_update,
        per,
        nu_dtype,
    )
    return optimizer(
        algorithm,
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
