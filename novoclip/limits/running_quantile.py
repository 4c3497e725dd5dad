"""The limit of `clip_by_running_quantile`: a running estimate of a quantile of the norms."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.arguments import check_choice, check_number, check_quantile, value_at
from novoclip.limit import Limit, make_limit, select_blocks
from novoclip.ranges import is_limit, no_limit
from novoclip.safe_math import logarithm
from novoclip.typing import ScalarOrSchedule

FORMS = ("geometric", "arithmetic")


class ArithmeticQuantileState(NamedTuple):
    """State of `running_quantile` in the arithmetic form. The geometric form has a field of another name.

    Attributes:
      quantile: `(*blocks)`, estimate of the quantile; infinite before the first norm other than 0.
    """

    quantile: jax.Array


class QuantileState(NamedTuple):
    """State of `running_quantile` in the geometric form.

    Attributes:
      estimate: `(*blocks)`, logarithm of the estimated quantile; infinite before the first norm other than 0.
    """

    estimate: jax.Array


def running_quantile(
    quantile: ScalarOrSchedule,
    *,
    rate: ScalarOrSchedule = 0.2,
    form: Literal["geometric", "arithmetic"] = "geometric",
    initial: ScalarOrSchedule | None = None,
) -> Limit:
    """Limit each block to a running estimate of a quantile of its norms, with one scalar of state per block.

    With b_t = 1 if n_t <= c_t, else 0,

        c_{t+1} = c_t exp(-rate (b_t - quantile))    "geometric"
        c_{t+1} = c_t - rate (b_t - quantile)        "arithmetic"

    On average, c does not change when a fraction `quantile` of the norms is at most c. The arithmetic form stops at
    c = 0, where every block is set to zero: choose a rate that is small compared to the norms. Norms of 0 are ignored.

    Args:
      quantile: the quantile as a fraction, in [0, 1]: a float, an array or a schedule.
      rate: step size of the estimate, above 0, for "arithmetic" in the norms' units: a float, an array or a schedule. A
        smaller one converges more slowly, and to a more exact quantile.
      form: "geometric" or "arithmetic", the formula above.
      initial: c_1, above 0 and finite, in the norms' units: a float, an array or a schedule. None for the first norm
        other than 0.

    Returns:
      A Limit with a `QuantileState`, or an `ArithmeticQuantileState` for the arithmetic form.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or `form` is unknown.

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
