"""The two rules of Stable-SPAM: AdaClip scales spikes within a tensor down, AdaGN normalizes norms over time."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_flag, check_number, rate_at, value_at
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_blocks, resolve_fixed
from novoclip.leaves import is_measured
from novoclip.limit import Limit, make_limit, select_blocks
from novoclip.measure import Measure
from novoclip.ranges import no_limit
from novoclip.safe_math import hypotenuse, ratio, square_root
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule


class AverageState(NamedTuple):
    """A running mean, corrected for its bias.

    Attributes:
      mean: `(*blocks)`, the corrected mean.
      weight: `(*blocks)`, 1 - decay^t, the divisor of the correction.
    """

    mean: jax.Array
    weight: jax.Array


class RootRatioState(NamedTuple):
    """State of `adagn`.

    Attributes:
      first: running mean of the norms.
      second: square root of the running mean of their squares. The squares themselves may overflow.
    """

    first: AverageState
    second: AverageState


def _empty(norms: Any) -> AverageState:
    return AverageState(jnp.zeros(norms.shape, norms.dtype), jnp.zeros(norms.shape, norms.dtype))


def _rate(state: AverageState, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the weight after this step, and the fraction of the current norm in the corrected mean."""
    weight = state.weight + rate * (1 - state.weight)
    return weight, jnp.where(weight > 0, ratio(rate, jnp.where(weight > 0, weight, 1)), 0)


def _average_of_maxima(decay: ScalarOrSchedule, learn_zeros: bool) -> Limit:
    check_number("decay", decay, high=1.0)
    check_flag("learn_zeros", learn_zeros)

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, AverageState]:
        del param_norms, extra
        weight, share = _rate(state, rate_at(decay, step, norms, "decay"))
        mean = state.mean + share * (norms - state.mean)
        learned = AverageState(mean, weight)
        learned = learned if learn_zeros else select_blocks(norms > 0, learned, state)
        return jnp.where(weight > 0, mean, no_limit(norms.dtype)), learned

    return make_limit(_empty, update, name="adaclip")


def _spikes(per: Granularity) -> Measure:
    blocks = resolve_fixed(per, "max")

    def rescale(tree: optax.Updates, old: Any, new: Any) -> optax.Updates:
        def choose_each(leaf: Any, smaller: Any, bound: Any) -> Any:
            if not is_measured(leaf):
                return leaf
            within = jnp.abs(jnp.asarray(leaf)).astype(bound.dtype) <= bound
            return jnp.where(within, leaf, smaller)

        return jax.tree.map(choose_each, tree, blocks.rescale(tree, old, new), blocks.spread(new, tree))

    return blocks._replace(rescale=rescale)


def adaclip(
    decay: ScalarOrSchedule = 0.999,
    *,
    learn_zeros: bool = False,
    per: Granularity = "tensor",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale down elements that exceed the running mean of their tensor's maxima (AdaClip of Stable-SPAM).

    With n_t = max |g| of a tensor and c_t the bias-corrected running mean of n_1, ..., n_t, elements beyond c_t become
    g c_t / n_t. The others do not change. Tensors of zeros are ignored, unless `learn_zeros`.

    Args:
      decay: decay rate of the running mean, in [0, 1]: a float, an array or a schedule.
      learn_zeros: whether a maximum of 0 enters the mean too, as in the authors' code. The first gradient of a tensor
        after k steps of zeros is then scaled down to about 1 / (k + 1).
      per: the block, of which the maximum is taken: "tensor", as published, "tree" (the whole pytree), "unit" (an
        output unit), or a Measure made by `tensors`, `units` or `groups`, such as `novoclip.tensors(stacked=1)`, whose
        norm is ignored.
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is an `AverageState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `decay` is out of its range, a string is not one of those listed, or `per` is "element".

    Example:
      >>> import jax.numpy as jnp
      >>> rule = adaclip()
      >>> state = rule.init(jnp.zeros(2))
      >>> for gradient in ([1.0, 0.5], [1.0, 0.5], [100.0, 0.5]):
      ...     updates, state = rule.update(jnp.array(gradient), state)
      >>> print(updates.round(2), state.limits.round(2))
      [34.03  0.5 ] [34.03]

    References:
      Huang et al., `Stable-SPAM: how to train in 4-bit more stably than 16-bit Adam
      <https://arxiv.org/abs/2502.17055>`_, 2025.

    A spike enters the mean before it is scaled: early in a run, it passes almost unchanged. The authors' code corrects
    the bias with a step counter that their momentum reset sets back, which disables the rule for hundreds of steps.
    Here the counter is never set back.
    """
    return clip_by_limit(_spikes(per), _average_of_maxima(decay, learn_zeros), nonfinite=nonfinite, mask=mask)


def _mean_over_root(b1: ScalarOrSchedule, b2: ScalarOrSchedule, eps: ScalarOrSchedule, learn_zeros: bool) -> Limit:
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0)
    check_number("eps", eps)
    check_flag("learn_zeros", learn_zeros)

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, RootRatioState]:
        del param_norms, extra
        weight, share = _rate(state.first, rate_at(b1, step, norms, "b1"))
        mean = state.first.mean + share * (norms - state.first.mean)
        root_weight, root_share = _rate(state.second, rate_at(b2, step, norms, "b2"))
        root = hypotenuse(square_root(1 - root_share) * state.second.mean, square_root(root_share) * norms)
        size = root + value_at(eps, step, norms, "eps")
        learned = RootRatioState(AverageState(mean, weight), AverageState(root, root_weight))
        learned = learned if learn_zeros else select_blocks(norms > 0, learned, state)
        return ratio(mean, jnp.where(size > 0, size, 1)), learned

    return make_limit(lambda norms: RootRatioState(_empty(norms), _empty(norms)), update, name="adagn")


def adagn(
    b1: ScalarOrSchedule = 0.7,
    b2: ScalarOrSchedule = 0.9,
    *,
    eps: ScalarOrSchedule = 1e-8,
    learn_zeros: bool = False,
    per: Granularity = "tensor",
    norm: Norm = "l2",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale each tensor's norm to its running mean over its running root mean square (AdaGN, GradientStabilizer).

    u_t = (g_t / n_t) a_t / (sqrt(b_t) + eps), with a and b the bias-corrected running means of n and n^2. Norms of 0
    are ignored, unless `learn_zeros`.

    The new norm is near 1 and has no unit. The optimizer after it has to be invariant to the scale of gradients, such
    as Adam, or needs a new learning rate.

    A spike of any size gets a norm of at most (1 - b1) / sqrt(1 - b2), 0.95 with the defaults. Afterwards, a forgets
    the spike sooner than b: after a spike of 1000 times the usual norm, the next hundred steps are short, down to 0.01.
    To prevent that, place `adaclip` before it.

    Args:
      b1: decay rate of a, in [0, 1]: a float, an array or a schedule.
      b2: decay rate of b, in [0, 1]: a float, an array or a schedule.
      eps: added to sqrt(b), at least 0, in the gradients' units: a float, an array or a schedule.
      learn_zeros: whether norms of 0 enter a and b too, as in the authors' code.
      per: the block, which is the unit that is scaled together: "tensor", as published, "tree" (the whole pytree),
        "unit" (an output unit) or a Measure.
      norm: norm of a block: "l1", "l2" (Euclidean), "max" or "rms". A Measure has its own.
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is a `RootRatioState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, a string is not one of those listed, or `per` is "element".

    Example:
      >>> import jax.numpy as jnp
      >>> rule = adagn()
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (1.0, 1.0, 1.0, 1e6):
      ...     updates, state = rule.update(size * jnp.array([0.0, 5.0]), state)
      ...     print(f"{updates[1]:.2f}")
      1.00
      1.00
      1.00
      0.73

    References:
      Huang et al., `Stable-SPAM: how to train in 4-bit more stably than 16-bit Adam
      <https://arxiv.org/abs/2502.17055>`_, 2025.

    In Stable-SPAM, it comes after `adaclip` and before Adam.
    """
    limit = _mean_over_root(b1, b2, eps, learn_zeros)
    return clip_by_limit(resolve_blocks(per, norm), limit, "normalize", nonfinite=nonfinite, mask=mask)
