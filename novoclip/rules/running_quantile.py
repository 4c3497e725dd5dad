"""Limits that find a quantile of the norms without a history."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_choice, check_number, check_quantile, value_at
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import Limit, make_limit, select_blocks
from novoclip.measure import Measure
from novoclip.ranges import is_limit, no_limit
from novoclip.safe_math import logarithm

FORMS = ("geometric", "arithmetic")


class ArithmeticQuantileState(NamedTuple):
    """What `running_quantile` remembers in the arithmetic form: under another name than in the other form.

    Attributes:
      quantile: `(*blocks)`, the quantile; infinite before the first norm that is not 0.
    """

    quantile: jax.Array


class QuantileState(NamedTuple):
    """What `running_quantile` remembers in the geometric form.

    Attributes:
      estimate: `(*blocks)`, the logarithm of the quantile; infinite before the first norm that is not 0.
    """

    estimate: jax.Array


def running_quantile(
    quantile: Schedulable = 0.5,
    *,
    rate: Schedulable = 0.2,
    form: str = "geometric",
    initial: Schedulable | None = None,
) -> Limit:
    """Limit each block to an estimated quantile of its norms, with a state of one scalar per block.

    With b_t = 1 if n_t <= c_t, else 0,

        c_{t+1} = c_t exp(-rate (b_t - quantile))    "geometric"
        c_{t+1} = c_t - rate (b_t - quantile)        "arithmetic", whose rate is in the norms' units

    which stands still when a share `quantile` of the norms lies below c. The arithmetic c stops at 0, where
    it lets nothing through: its rate has to be small beside the norms. Norms of 0 are passed over.

    Args:
      quantile: in [0, 1]: a float, an array or a schedule.
      rate: above 0: a float, an array or a schedule. A smaller one finds the quantile later, and
        more exactly.
      form: "geometric" or "arithmetic".
      initial: c_1, above 0 and finite, or None: the first norm that is not 0.

    Returns:
      A Limit with a `QuantileState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or `form` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = running_quantile(0.5, form="arithmetic", initial=1.0)
      >>> state = limit.init(jnp.zeros(()))
      >>> for norm in (2.0, 2.0, 0.5):
      ...     limits, state = limit.update(jnp.array(norm), state, step=jnp.int32(0))
      ...     print(limits.round(3))
      1.0
      1.1
      1.2
    """
    check_quantile("quantile", quantile)
    check_number("rate", rate, exclude_low=True)
    check_choice("form", form, FORMS)
    if initial is not None:
        check_number("initial", initial, exclude_low=True, exclude_high=True)
    geometric = form == "geometric"
    remembered: Any = QuantileState if geometric else ArithmeticQuantileState

    def init(norms: Any) -> Any:
        return remembered(jnp.full(norms.shape, no_limit(norms.dtype), norms.dtype))

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del param_norms, extra
        (known,) = state
        first = norms if initial is None else value_at(initial, step, norms, "initial")
        first = jnp.where(first > 0, first, 1)
        begun = is_limit(known)
        estimate = jnp.where(begun, known, logarithm(first) if geometric else first)
        # Before the first step the limit is `initial` itself, not the exponential of its logarithm.
        limits = jnp.where(begun, jnp.exp(estimate), first) if geometric else estimate
        limits = jnp.where(begun | (norms > 0), limits, no_limit(norms.dtype))
        within = (norms <= limits).astype(norms.dtype)
        moved = estimate - value_at(rate, step, norms, "rate") * (within - value_at(quantile, step, norms, "quantile"))
        moved = moved if geometric else jnp.maximum(moved, 0)
        return limits, select_blocks(norms > 0, remembered(moved), state)

    return make_limit(init, update, name=f"running_quantile(form={form!r})")


def clip_by_running_quantile(
    quantile: Schedulable = 0.5,
    *,
    rate: Schedulable = 0.2,
    form: str = "geometric",
    initial: Schedulable | None = None,
    per: str | Measure = "tree",
    norm: str = "l2",
    shape: str = "hard",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip at a quantile of the norms that is tracked in one number a block.

    u_t = g_t min(1, c_t / n_t), with the limit c_t of `running_quantile`: AutoClip without a history.

    Args:
      quantile: in [0, 1]: a float, an array or a schedule. The authors' 0.5 clips every other
        step; 0.9 clips outliers only.
      rate: above 0: a float, an array or a schedule. At 0.2, the authors', a limit rises by a
        fifth a step at most.
      form: "geometric", or "arithmetic", whose rate is in the gradients' units.
      initial: the first limit, above 0 (the authors' is 0.1), or None: the first norm.
      per: the blocks: "tree", "tensor", "unit", "element" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      shape: "hard", "tanh", "arctan", "algebraic", "smooth", "normalize" or "drop".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it
        on. Neither moves the estimate.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is a `QuantileState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_running_quantile(0.9)
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (1.0, 1.0, 100.0):
      ...     updates, state = rule.update(size * jnp.array([3.0, 4.0]), state)
      >>> print(state.limits.round(2))
      5.87

    References:
      Andrew, Thakkar, McMahan, Ramaswamy, `Differentially private learning with adaptive
      clipping <https://arxiv.org/abs/1905.03871>`_, 2019.

    The authors count how many of a batch's examples are within: see `per_example`. Here it is the
    one gradient of a step. Their noise is not added.
    """
    limit = running_quantile(quantile, rate=rate, form=form, initial=initial)
    return clip(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
