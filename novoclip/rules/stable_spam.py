"""The two rules of Stable-SPAM: spikes scaled down within a tensor, and norms made even over time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_number, rate_at, value_at
from novoclip.clipping import clip
from novoclip.granularity import resolve_blocks, resolve_fixed
from novoclip.leaves import is_measured
from novoclip.limits import Limit, make_limit, select_blocks
from novoclip.measure import Measure
from novoclip.ranges import no_limit
from novoclip.safe_math import hypotenuse, ratio, square_root


class AverageState(NamedTuple):
    """A running mean, corrected for its bias.

    Attributes:
      mean: `(*blocks)`, the mean.
      weight: `(*blocks)`, 1 - decay^t.
    """

    mean: jax.Array
    weight: jax.Array


class RootRatioState(NamedTuple):
    """What AdaGN remembers.

    Attributes:
      first: the mean of the norms.
      second: the root of the mean of their squares, which themselves may overflow.
    """

    first: AverageState
    second: AverageState


def _empty(norms: Any) -> AverageState:
    return AverageState(jnp.zeros(norms.shape, norms.dtype), jnp.zeros(norms.shape, norms.dtype))


def _rate(state: AverageState, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the weight after this step, and the share of the present norm in the corrected mean."""
    weight = state.weight + rate * (1 - state.weight)
    return weight, jnp.where(weight > 0, ratio(rate, jnp.where(weight > 0, weight, 1)), 0)


def _average_of_maxima(decay: Schedulable) -> Limit:
    check_number("decay", decay, high=1.0)

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, AverageState]:
        del param_norms, extra
        weight, share = _rate(state, rate_at(decay, step, norms, "decay"))
        mean = state.mean + share * (norms - state.mean)
        learned = select_blocks(norms > 0, AverageState(mean, weight), state)
        return jnp.where(weight > 0, mean, no_limit(norms.dtype)), learned

    return make_limit(_empty, update, name="adaclip")


def _spikes(per: str | Measure) -> Measure:
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
    decay: Schedulable = 0.999, *, per: str | Measure = "tensor", nonfinite: str = "zero", mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Scale down the numbers of a tensor that are beyond the average of its maxima (AdaClip of Stable-SPAM).

    With n_t = max |g| of a tensor and c_t the running mean of n_1 ... n_t, corrected for its bias,
    numbers beyond c_t become g c_t / n_t; the others stay. Tensors of zeros are passed over.

    Args:
      decay: of the mean, in [0, 1]: a float, an array or a schedule.
      per: the blocks: "tensor", as published, "tree", "unit", or a Measure, such as
        `novoclip.tensors(stacked=1)`, of which only the blocks count.
      nonfinite: "zero" sets a tensor that is not finite to zero; "propagate" passes it on.
        Neither enters the mean.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is an `AverageState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `decay` is out of its range, a name is unknown, or `per` is "element".

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

    The mean takes in a spike before it is used: early in a run a spike passes almost whole. The
    authors' code corrects the bias with a step counter that their momentum reset sets back, which
    switches the rule off for hundreds of steps; the counter here is its own.
    """
    return clip(_spikes(per), _average_of_maxima(decay), nonfinite=nonfinite, mask=mask)


def _mean_over_root(b1: Schedulable, b2: Schedulable, eps: Schedulable) -> Limit:
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0)
    check_number("eps", eps)

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
        return ratio(mean, jnp.where(size > 0, size, 1)), select_blocks(norms > 0, learned, state)

    return make_limit(lambda norms: RootRatioState(_empty(norms), _empty(norms)), update, name="adagn")


def adagn(
    b1: Schedulable = 0.7,
    b2: Schedulable = 0.9,
    *,
    eps: Schedulable = 1e-8,
    per: str | Measure = "tensor",
    norm: str = "l2",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace each tensor's norm by its running mean over its running root mean square (AdaGN, GradientStabilizer).

    u_t = (g_t / n_t) a_t / (sqrt(b_t) + eps), with a and b the running means of n and n^2,
    corrected for their biases. The new norm is a number near 1 without units: the optimizer behind has
    to be one that no scale changes, such as Adam, or its learning rate chosen anew. A spike, however
    large, gets a norm of at most (1 - b1) / sqrt(1 - b2), 0.95 with these numbers, but a then forgets it sooner
    than b: after one of 1000 times the next hundred steps are short, down to 0.01. `adaclip` in front
    prevents that. Norms of 0 are passed over.

    Args:
      b1: decay of a, in [0, 1]: a float, an array or a schedule.
      b2: decay of b, likewise.
      eps: at least 0, in the gradients' units, likewise.
      per: the blocks: "tensor", as published, "tree", "unit" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it
        on. Neither enters the means.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is a `RootRatioState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, a name is unknown, or `per` is "element".

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

    In Stable-SPAM it follows `adaclip` and precedes Adam.
    """
    return clip(resolve_blocks(per, norm), _mean_over_root(b1, b2, eps), "normalize", nonfinite=nonfinite, mask=mask)
