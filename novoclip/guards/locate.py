"""Which gradients were not finite, in words."""

from typing import Any

import optax

from novoclip.guards.counters import BadSteps, bad_steps, broken_accumulators, leaf_lines, measured_paths


def locate_nonfinite(state: Any, params: optax.Params) -> str:
    """Say in words which gradients were not finite, by the states of guards, optimizers and rules.

    `guard_nonfinite`, `skip_spikes` and the optimizers of novoclip count for each leaf how often it was not finite, and
    when last. Clipping rules, `uclip` and `clip21` count only the steps. It reads the counters, and so waits for the
    device: call it where you log.

    Args:
      state: any pytree that contains such states, such as a whole optimizer state.
      params: the parameters that `init` was given, for the names of their leaves.

    Returns:
      A line for each leaf that was ever not finite, the latest first, or a sentence that there was none. Steps are
      counted from 1. A further line counts the steps in which every leaf was finite, but the loss, or a norm, was not.
      With several states, each line begins with the kind and the place of its state. If a state saw only some of the
      leaves, as inside `optax.masked` or `optax.partition`, its leaves have numbers instead of names.

    Raises:
      TypeError: if called inside `jit`.
      ValueError: if there is no such state, or only one and it has more leaves than `params`, or the state is that
        of several runs.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> params = {"bias": jnp.zeros(2), "kernel": jnp.ones((2, 2))}
      >>> optimizer = novoclip.skip_spikes(optax.adam(0.1))
      >>> gradients = {"bias": jnp.array([1.0, jnp.nan]), "kernel": jnp.ones((2, 2))}
      >>> updates, state = optimizer.update(gradients, optimizer.init(params), params)
      >>> print(novoclip.locate_nonfinite(state, params))
      bias: not finite in 1 of 1 steps, last at step 1
    """
    found = bad_steps(state)
    broken = [
        f"{name}: not finite in what optax.MultiSteps accumulates, and so in all that follows"
        for name in broken_accumulators(state)
    ]
    if not found and not broken:
        msg = (
            "state holds no counters of steps that were not finite: it must contain the state of guard_nonfinite, of "
            "skip_spikes, or of a rule or optimizer of novoclip"
        )
        raise ValueError(msg)
    # States that count leaves say more than those that do not.
    told = [counts for counts in found if counts.leaf_steps is not None or counts.nonfinite] or found
    lines = [
        line if len(told) == 1 else f"{counts.where}: {line}"
        for counts in told
        for line in _lines(counts, params, alone=len(told) == 1)
    ]
    return "\n".join(broken + lines)


def _lines(counts: BadSteps, params: Any, *, alone: bool) -> list[str]:
    if not counts.nonfinite:
        return [f"no gradient was ever not finite in {counts.steps} steps"]
    if counts.leaf_steps is None or counts.leaf_last is None:
        return [
            f"not finite in {counts.nonfinite} of {counts.steps} steps; this state does not count leaves: "
            "put guard_nonfinite around the optimizer"
        ]
    try:
        return leaf_lines(counts, params)
    except ValueError:
        more = params is not None and len(counts.leaf_steps) > len(measured_paths(params))
        if alone and more:
            raise
        return leaf_lines(counts, None)
