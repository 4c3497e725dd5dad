"""Stop a training run after too many bad steps; decided on the host."""

from typing import Any, NoReturn

import optax

from novoclip.arguments import check_integer, check_number
from novoclip.guards.counters import BadSteps, bad_steps, broken_accumulators, has_accumulators, leaf_lines

AT_MOST = 4  # how many leaves a message lists


class TrainingStoppedError(RuntimeError):
    """The error that `check` raises: too many steps were bad.

    Attributes:
      counts: what the state that says so has counted: where it is, `steps`, `bad`, `nonfinite`, `in_a_row`,
        `leaf_steps` and `leaf_last`; None if it is `optax.MultiSteps`, which counts nothing.
    """

    def __init__(self, message: str, counts: BadSteps | None = None) -> None:
        super().__init__(message)
        self.counts = counts


def check(
    opt_state: Any, params: optax.Params | None = None, *, max_in_a_row: int = 32, max_fraction: float | None = None
) -> None:
    """Raise if too many steps were bad: skipped, or with a gradient that was not finite.

    Call it on the host, between steps, after metrics are written and before a checkpoint is saved, so that the last
    checkpoint is a good one. It reads a few counters, and so waits for the device. Inside `jit` nothing is added.

    It reads the states of `guard_nonfinite`, `skip_spikes`, `uclip`, `clip21`, and of the rules and optimizers of
    novoclip, wherever they are in `opt_state`. It also raises if the gradients that an `optax.MultiSteps` accumulates
    are not finite, since all its later updates would be NaN or zero.

    Args:
      opt_state: any pytree that contains such states, such as a whole optimizer state.
      params: the parameters that `init` was given, for the names of their leaves.
      max_in_a_row: raise once this many of the latest steps in a row were bad, at least 1.
      max_fraction: raise if more than this fraction of all steps so far was bad, in [0, 1]; None for no such limit.
        One bad step among the first few is a large fraction: pass it only after a few hundred steps.

    Returns:
      None.

    Raises:
      TrainingStoppedError: if too many steps were bad. It names the state, the counts, the leaves and the steps.
      TypeError: if an argument has the wrong type, or if called inside `jit`.
      ValueError: if a number is out of its range, if `opt_state` contains nothing to check, if it is that of several
        runs, or if it was saved by novoclip 0.1.0 and does not count steps in a row: see `upgrade_state`.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> params = {"w": jnp.zeros(2)}
      >>> optimizer = novoclip.guard_nonfinite(optax.adam(0.1))
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     updates, state = optimizer.update({"w": jnp.array([1.0, jnp.nan])}, state, params)
      >>> try:
      ...     novoclip.check(state, params, max_in_a_row=3)
      ... except novoclip.TrainingStoppedError as error:
      ...     print(error)
      guard_nonfinite: 3 bad steps in a row, 3 of 3 in all; w: not finite in 3 of 3 steps, last at step 3
    """
    check_integer("max_in_a_row", max_in_a_row, low=1)
    if max_fraction is not None:
        check_number("max_fraction", max_fraction, high=1.0)
    found = bad_steps(opt_state)
    if broken := broken_accumulators(opt_state):
        msg = (
            f"the gradients that optax.MultiSteps accumulates are not finite in {', '.join(broken[:AT_MOST])}: use "
            "optax.MultiSteps(..., should_skip_update_fn=optax.skip_not_finite), or put guard_nonfinite or skip_spikes "
            "around it"
        )
        raise TrainingStoppedError(msg)
    if not found and not has_accumulators(opt_state):
        msg = (
            "opt_state has nothing to check: it must contain the state of guard_nonfinite, of skip_spikes, or of a "
            "rule or optimizer of novoclip"
        )
        raise ValueError(msg)
    for counts in found:
        if counts.in_a_row is None and max_fraction is None:
            msg = (
                f"the state of {counts.where} does not count bad steps in a row, as in novoclip 0.1.0: convert it by "
                "upgrade_state, or give max_fraction"
            )
            raise ValueError(msg)
        if counts.in_a_row is not None and counts.in_a_row >= max_in_a_row:
            _stop(counts, params, f"{counts.in_a_row} bad steps in a row, {counts.bad} of {counts.steps} in all")
        if max_fraction is not None and counts.bad > max_fraction * counts.steps:
            _stop(counts, params, f"{counts.bad} bad steps of {counts.steps}, more than max_fraction={max_fraction}")


def _stop(counts: BadSteps, params: Any, reason: str) -> NoReturn:
    try:
        leaves = leaf_lines(counts, params)
    except ValueError:
        leaves = leaf_lines(counts, None)
    parts = [f"{counts.where}: {reason}", *leaves[:AT_MOST]]
    if counts.bad > counts.nonfinite:
        parts.insert(1, f"{counts.bad - counts.nonfinite} of them for a spike")
    if len(leaves) > AT_MOST:
        parts.append(f"and {len(leaves) - AT_MOST} more")
    raise TrainingStoppedError("; ".join(parts), counts)
