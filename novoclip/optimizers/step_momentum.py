"""Momentum over steps that include the learning rate, for RMSprop and LARS."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from novoclip.arguments import check_flag, check_number
from novoclip.optimizers.algorithm import Algorithm
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.moments import zeros
from novoclip.optimizers.step import Step
from novoclip.typing import ScalarOrSchedule


class StepMomentumState(NamedTuple):
    """The state of an optimizer with momentum over its steps.

    Attributes:
      inner: the state of the optimizer without momentum.
      trace: a decaying sum of steps with their learning rates, a pytree like the parameters.
    """

    inner: Any
    trace: Any


def momentum_of_steps(
    algorithm: Algorithm, momentum: ScalarOrSchedule, nesterov: bool, accumulator_dtype: Any = None
) -> Algorithm:
    """Return the Algorithm whose direction is b_t = momentum b_{t-1} + lr_t u_t, or lr_t u_t + momentum b_t."""
    check_number("momentum", momentum, high=1.0)
    check_flag("nesterov", nesterov)
    check_dtype("accumulator_dtype", accumulator_dtype)

    def added(gradients: Any, inner: Any, trace: Any, step: Step) -> Any:
        by, rate = step.value(momentum, "momentum"), step.learning_rate
        moved = algorithm.direction(gradients, inner, step)
        return jax.tree.map(lambda u, b: by * b + rate.astype(u.dtype) * u, moved, trace)

    def init(shapes: Any) -> StepMomentumState:
        return StepMomentumState(algorithm.init(shapes), zeros(shapes, accumulator_dtype))

    def learn(gradients: Any, state: StepMomentumState, step: Step) -> StepMomentumState:
        return state._replace(inner=algorithm.learn(gradients, state.inner, step))

    def follow(gradients: Any, state: StepMomentumState, before: StepMomentumState, step: Step) -> StepMomentumState:
        return state._replace(trace=added(gradients, state.inner, before.trace, step))

    def direction(gradients: Any, state: StepMomentumState, step: Step) -> Any:
        return added(gradients, state.inner, state.trace, step) if nesterov else state.trace

    return Algorithm(
        init, learn, direction, f"{algorithm.name} with momentum", (follow,), scaled=True, masks=algorithm.masks
    )
