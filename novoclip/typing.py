"""Types of arguments, as signatures show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
import optax

from novoclip.measure import Measure

Scalar = float | np.ndarray | jax.Array
"""A number: a Python float, a scalar array, or a vector with one entry per block."""

Schedule = Callable[[jax.Array], Scalar]
"""A function of the step, counted from 0."""

ScalarOrSchedule = Scalar | Schedule
"""A number, or a schedule that returns one."""

Threshold = ScalarOrSchedule | Mapping[str, ScalarOrSchedule | None]
"""A number or a schedule, or a mapping from names of leaves to such: {"embed": 0.1, "*": 1.0}."""

Granularity = Literal["tree", "tensor", "unit", "element"] | Measure
"""What is clipped together: the whole pytree, each tensor, each output unit, each element; or a Measure."""

Norm = Literal["l1", "l2", "max", "inf", "rms"]
"""How a block is measured. "inf" is "max"."""

Shape = Literal["hard", "tanh", "arctan", "algebraic", "smooth", "normalize", "drop"]
"""What becomes of a block beyond its limit."""

Nonfinite = Literal["zero", "propagate"]
"""What a clipping rule does with a block whose norm is not finite."""

SkipNonfinite = Literal["skip", "propagate"]
"""What an optimizer does with a step whose gradients are not finite."""

DecayMode = Literal["decoupled", "coupled"]
"""Where weight decay is added."""

Mask = Any | Callable[[optax.Params], Any]
"""A pytree of booleans that is a prefix of the parameters, or a function that returns one."""

Clip = optax.GradientTransformation | None
"""A clipping rule that is applied to the gradients first."""
