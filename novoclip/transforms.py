"""Whether an argument is a transform: what to write where a Limit or a factory was given in its place."""

from typing import Any

import jax

from novoclip.limits import Limit


def check_transform(argument: str, value: Any) -> None:
    """Raise a TypeError, which says what to write, unless a value has the interface of a GradientTransformation."""
    if isinstance(value, Limit):
        got = f"got a Limit, which is one part of a rule: write {argument}=novoclip.clip('tree', limit)"
    elif isinstance(value, type) or (callable(value) and not _is_transform(value)):
        name = getattr(value, "__name__", type(value).__name__)
        got = f"got {name} itself, which was not called: write {argument}={name}(...)"
    elif _is_transform(value):
        return
    else:
        got = f"got {value!r}"
    msg = f"{argument} must be a GradientTransformation, such as clip_by_global_norm(1.0); {got}"
    raise TypeError(msg)


def check_rule(argument: str, value: Any, optimizers: str) -> None:
    """Raise a TypeError unless a value is a transform that no optimizer of this package is.

    Args:
      argument: what the value was given as.
      value: that value.
      optimizers: the module that makes the optimizers, by which their `update` is known.
    """
    check_transform(argument, value)
    if getattr(value.update, "__module__", None) == optimizers:
        _refuse_optimizer(argument)


def check_rule_state(argument: str, state: Any, kind: type) -> None:
    """Raise a TypeError if a rule's state contains that of an optimizer, as a chain's may."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    if any(isinstance(node, kind) for node in nodes):
        _refuse_optimizer(argument)


def _refuse_optimizer(argument: str) -> None:
    msg = (
        f"{argument} must be a rule, which clips the gradient before the optimizer; got an optimizer, or a scale_by_*: "
        f"write {argument}=clip_by_global_norm(1.0), or put the two one after the other in optax.chain"
    )
    raise TypeError(msg)


def _is_transform(value: Any) -> bool:
    return hasattr(value, "init") and hasattr(value, "update")
