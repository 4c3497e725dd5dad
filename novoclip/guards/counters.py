"""The counters of bad steps that an optimizer state holds, read on the host."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from novoclip.clip_state import ClipState
from novoclip.guards.nonfinite import NonfiniteState
from novoclip.guards.spike_state import SpikeState
from novoclip.leaves import is_measured, unwrapped
from novoclip.optimizers.algorithm import OptimizerState
from novoclip.origin import Origin
from novoclip.paths import leaves_with_paths, make_path
from novoclip.wrappers.carry import CarryState


class Fields(NamedTuple):
    """What a kind of state is called, and the names of its counters; empty where there is none."""

    name: str
    bad: str
    in_a_row: str
    leaves: bool


KINDS: dict[Any, Fields] = {
    NonfiniteState: Fields("guard_nonfinite", "nonfinite", "nonfinite_in_a_row", leaves=True),
    SpikeState: Fields("skip_spikes", "skipped", "skipped_in_a_row", leaves=True),
    OptimizerState: Fields("optimizer", "nonfinite", "nonfinite_in_a_row", leaves=True),
    ClipState: Fields("rule", "nonfinite", "nonfinite_in_a_row", leaves=False),
    CarryState: Fields("carry", "nonfinite", "nonfinite_in_a_row", leaves=False),
}


class BadSteps(NamedTuple):
    """What one state has counted.

    Attributes:
      where: its kind and its place in the optimizer state, such as "skip_spikes at inner/0".
      steps: steps seen.
      bad: steps among them that were skipped, or whose gradient was not finite.
      nonfinite: those with something that was not finite.
      in_a_row: how many of the latest steps in a row were bad; None if the state does not count that.
      leaf_steps: for each leaf, the steps in which it was not finite; None if the state does not count that.
      leaf_last: for each leaf, the last of them.
    """

    where: str
    steps: int
    bad: int
    nonfinite: int
    in_a_row: int | None
    leaf_steps: list[int] | None
    leaf_last: list[int] | None


def bad_steps(opt_state: Any) -> list[BadSteps]:
    """Return what each state of novoclip in an optimizer state has counted, states inside others included."""
    return [_read(state, path) for path, state in _found(opt_state, tuple(KINDS)) if _looks(state)]


def _looks(state: Any) -> bool:
    """Whether a state counts bad steps: an optimizer with nonfinite="propagate" does not look for them."""
    propagates = isinstance(state, OptimizerState) and isinstance(state.origin, Origin) and _is_empty(state.leaf_steps)
    return not _is_empty(state.nonfinite) and not propagates


def broken_accumulators(opt_state: Any) -> list[str]:
    """Return the leaves of the accumulated gradients of every `optax.MultiSteps` that hold NaN or infinity."""
    return [
        f"{path}/acc_grads/{name}".strip("/")
        for path, state in _found(opt_state, (optax.MultiStepsState,))
        for name, leaf in leaves_with_paths(state.acc_grads)
        if is_measured(leaf) and not bool(jax.numpy.all(jax.numpy.isfinite(leaf)))
    ]


def has_accumulators(opt_state: Any) -> bool:
    """Whether an optimizer state holds gradients that `optax.MultiSteps` accumulates."""
    return any(_found(opt_state, (optax.MultiStepsState,)))


def leaf_lines(counts: BadSteps, params: Any) -> list[str]:
    """Return a line for each leaf that was ever not finite, the latest first, and one for what was no leaf.

    Raises:
      ValueError: if `params` has another number of leaves than the state counts.
    """
    if counts.leaf_steps is None or counts.leaf_last is None:
        return []
    total, last = counts.leaf_steps, counts.leaf_last
    names = [f"leaf {i + 1} of {len(total)}" for i in range(len(total))]
    if params is not None:
        names = measured_paths(params)
    if len(names) != len(total):
        msg = (
            f"params has {len(names)} leaves with numbers, but the state of {counts.where} counts {len(total)}: "
            "give the parameters that its init was given"
        )
        raise ValueError(msg)
    bad = sorted((i for i in range(len(total)) if total[i]), key=lambda i: -last[i])
    lines = [f"{names[i]}: not finite in {total[i]} of {counts.steps} steps, last at step {last[i]}" for i in bad]
    elsewhere = counts.nonfinite - sum(total)
    if elsewhere > 0:
        lines.append(
            "the loss, or a norm too large for its dtype: not finite in at least "
            f"{elsewhere} of {counts.steps} steps in which every leaf was finite"
        )
    return lines


def measured_paths(tree: Any) -> list[str]:
    """Return the paths of the leaves with numbers; by their keys where two would read alike."""
    paths = [path for path, leaf in leaves_with_paths(tree) if is_measured(leaf)]
    return [str(path) if paths.count(path) == 1 else " > ".join(map(repr, path.keys)) for path in paths]


def _found(tree: Any, kinds: tuple[Any, ...], before: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the states of these kinds with their paths, outer ones before those inside them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, kinds))
    for keys, node in leaves:
        if isinstance(node, kinds):
            yield make_path((*before, *keys)), node
            for field, part in zip(node._fields, node, strict=True):
                yield from _found(part, kinds, (*before, *keys, jax.tree_util.GetAttrKey(field)))


def _read(state: Any, path: str) -> BadSteps:
    fields = KINDS[type(state)]
    name = f"{fields.name} at {path}" if path else fields.name
    leaves = fields.leaves and not _is_empty(state.leaf_steps)
    return BadSteps(
        where=name,
        steps=_integer(state.steps, name),
        bad=_integer(getattr(state, fields.bad), name),
        nonfinite=_integer(state.nonfinite, name),
        in_a_row=_integer_or_none(getattr(state, fields.in_a_row), name),
        leaf_steps=_array(state.leaf_steps, name, 1).tolist() if leaves else None,
        leaf_last=_array(state.leaf_last, name, 1).tolist() if leaves else None,
    )


def _integer_or_none(leaf: Any, name: str) -> int | None:
    return None if _is_empty(leaf) else _integer(leaf, name)


def _integer(leaf: Any, name: str) -> int:
    return int(_array(leaf, name, 0))


def _array(leaf: Any, name: str, dimensions: int) -> np.ndarray:
    leaf = unwrapped(leaf)
    if isinstance(leaf, jax.core.Tracer):
        msg = "the state must be read outside of jit, on the host: its counters are not known while a step is traced"
        raise TypeError(msg)
    array = np.asarray(leaf)
    if array.ndim != dimensions:
        msg = (
            f"the state of {name} is that of several runs, of shape {array.shape[: array.ndim - dimensions]}: "
            "give one of them, such as jax.tree.map(lambda leaf: leaf[0], state)"
        )
        raise ValueError(msg)
    return array


def _is_empty(leaf: Any) -> bool:
    return isinstance(leaf, tuple)
