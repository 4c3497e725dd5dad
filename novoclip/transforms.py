"""Checks that an argument is a transform, with messages for a Limit or a function given in its place."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from novoclip.limit import Limit

OF_FINITE = "of_finite"  # an attribute of update functions


def check_transform(argument: str, value: Any) -> None:
    """Raise a TypeError that says what to write unless a value has the interface of a GradientTransformation."""
    if isinstance(value, Limit):
        got = f"got a Limit, which is one part of a rule: write {argument}=novoclip.clip_by_limit('tree', limit)"
        got += ", or, around an optimizer, skip_spikes(optimizer, limit)" if argument == "inner" else ""
    elif isinstance(value, type) or (callable(value) and not _is_transform(value)):
        name = getattr(value, "__name__", type(value).__name__)
        got = f"got {name} itself, which was not called: write {argument}={name}(...)"
    elif _is_transform(value):
        return
    else:
        got = f"got {value!r}"
    example = "optax.adamw(3e-4)" if argument == "inner" else "clip_by_global_norm(1.0)"
    msg = f"{argument} must be a GradientTransformation, such as {example}; {got}"
    raise TypeError(msg)


def check_rule(argument: str, value: Any, optimizers: str) -> None:
    """Raise a TypeError unless a value is a transform, and not an optimizer of this package.

    Args:
      argument: the name of the argument.
      value: its value.
      optimizers: the name of the module that defines the `update` of all optimizers.
    """
    check_transform(argument, value)
    if getattr(value.update, "__module__", None) == optimizers:
        _refuse_optimizer(argument)


def check_rule_state(argument: str, state: Any, kind: type) -> None:
    """Raise a TypeError if the state of a rule contains that of an optimizer, as the state of a chain may."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    if any(isinstance(node, kind) for node in nodes):
        _refuse_optimizer(argument)


def _refuse_optimizer(argument: str) -> None:
    msg = (
        f"{argument} must be a rule, which clips the gradient before the optimizer; got an optimizer, or a scale_by_*: "
        f"write {argument}=clip_by_global_norm(1.0), or chain the two by optax.chain"
    )
    raise TypeError(msg)


def _is_transform(value: Any) -> bool:
    return hasattr(value, "init") and hasattr(value, "update")


def known_finite(update: Callable[..., Any], of_finite: Callable[..., Any]) -> None:
    """Attach to an update function the one that guards use in its place, which expects finite gradients."""
    update.__dict__[OF_FINITE] = of_finite


def update_of_finite(rule: optax.GradientTransformationExtraArgs) -> Callable[..., Any]:
    """Return a transform's update function for gradients that are known to be finite."""
    return getattr(rule.update, OF_FINITE, rule.update)
