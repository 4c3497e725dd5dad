"""A transform run on recorded norms: a recorded norm is a gradient with one element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from novoclip.records import Record
from novoclip.safe_math import hypotenuse
from novoclip.telemetry import metrics

LIMITS = ("limit", "clip_limit")
SHORTEST = 256  # rows that a compiled program has at least
SKIPPED = ("spikes/skipped", "guard/nonfinite", "optimizer/nonfinite")


class Course(NamedTuple):
    """What a transform made of a record.

    Attributes:
      after: float64 `(rows,)`, the norm that was let through; 0 where the step was skipped.
      limits: float64 `(rows,)`, the limit that the state showed after the row; infinite where it shows none.
      skipped: `(rows,)`, whether a guard skipped the step.
    """

    after: np.ndarray
    limits: np.ndarray
    skipped: np.ndarray


def course(transform: optax.GradientTransformation, record: Record, *, tensors: bool = False) -> Course:
    """Run a transform on a record, row by row, as a training would.

    Args:
      transform: any transform of gradients. Rules that need the parameters are given weights of norm 1.
      record: the recorded norms.
      tensors: whether the gradient is a pytree of the norms of tensors, one element each, and not the whole norm.

    Returns:
      A Course.
    """
    rows, params = _rows(record, len(record.norms), tensors=tensors)
    return _course(jax.jit(lambda *rows: _scan(transform, rows, params))(*rows)[1])


def course_of(rule: Callable[[], optax.GradientTransformation], record: Record, *, tensors: bool) -> Course:
    """Run the transform that a function makes, as `course` does.

    It is compiled once for each function and number of rows, which is filled up to a power of two, at least 256; also
    for records with losses and those without, and for each set of names of tensors. What was compiled is kept: for a
    function that lives as long as the program.
    """
    found = _one(rule, *_rows(record, _filled(record), tensors=tensors))[1]
    return _course([each[: len(record.norms)] for each in found])


def courses(
    rule: Callable[[Any], optax.GradientTransformation], numbers: Sequence[float], record: Record, *, tensors: bool
) -> list[Course]:
    """Run the transforms that a function makes of several numbers, as one program.

    Their rounding may differ from that of `course`. It is compiled as in `course_of`, and for each count of numbers.
    """
    found = _grid(rule, jnp.asarray(numbers, jnp.float32), *_rows(record, _filled(record), tensors=tensors))
    courses = [np.asarray(each)[:, : len(record.norms)] for each in found]
    return [_course([each[i] for each in courses]) for i in range(len(numbers))]


def why_not_by_tensor(record: Record) -> str | None:
    """Return why rules that clip each tensor by itself cannot be tried on the norms of tensors; None if they can."""
    if not record.tensors:
        return None
    total = functools.reduce(np.hypot, record.tensors.values())
    known = np.isfinite(record.norms)
    both = known & np.isfinite(total) & (record.norms > 0)
    if both.sum() < 0.99 * known.sum():
        return "rules per tensor are not tried: the norms of tensors are missing in some rows, or not finite"
    share = float(np.median(total[both] / record.norms[both])) if both.any() else 1.0
    if abs(share - 1) > 0.01:
        return f"rules per tensor are not tried: the {len(record.tensors)} tensors have {share:.2f} of the whole norm"
    return None


def _filled(record: Record) -> int:
    """Return a number of rows that many records share: each further one would be compiled, and kept."""
    return max(SHORTEST, 1 << (len(record.norms) - 1).bit_length())


def _rows(record: Record, length: int, *, tensors: bool) -> tuple[Any, Any]:
    """Return the gradients and the losses of all rows and of zeros after them, and parameters like the gradients."""
    after = (0, length - len(record.norms))
    norms = record.tensors if tensors else {"": record.norms}
    gradients = {name: jnp.asarray(np.pad(_float32(each), after))[:, None] for name, each in norms.items()}
    losses = _losses(record)
    filled = None if losses is None else jnp.asarray(np.pad(losses, after))
    return (gradients, filled), {name: jnp.ones(1) for name in gradients}


def _course(found: Sequence[Any]) -> Course:
    after, limits, skipped = (np.asarray(each) for each in found)
    return Course(after.astype(np.float64), limits.astype(np.float64), skipped)


@functools.partial(jax.jit, static_argnums=0)
def _one(rule: Callable[[], optax.GradientTransformation], rows: Any, params: Any) -> Any:
    return _scan(rule(), rows, params)


@functools.partial(jax.jit, static_argnums=0)
def _grid(rule: Callable[[Any], optax.GradientTransformation], numbers: jax.Array, rows: Any, params: Any) -> Any:
    return jax.vmap(lambda number: _scan(rule(number), rows, params)[1])(numbers)


def _scan(transform: optax.GradientTransformation, rows: Any, params: Any) -> Any:
    rule = optax.with_extra_args_support(transform)

    def step(state: Any, row: Any) -> tuple[Any, Any]:
        gradient, loss = row
        extra = {} if loss is None else {"value": loss}
        updates, new = rule.update(gradient, state, params, **extra)
        shown = metrics(new)
        found = [value for name, value in shown.items() if name.rpartition("/")[2] in LIMITS]
        limit = jnp.min(jnp.stack(found)) if found else jnp.array(jnp.inf)
        skipped = _skipped(new) > _skipped(state)
        leaves = [leaf.astype(jnp.float32).reshape(()) for leaf in jax.tree.leaves(updates)]
        after = functools.reduce(hypotenuse, map(jnp.abs, leaves))
        return new, (after, limit, skipped)

    # With the state: without it, XLA would drop what only the state holds, and round the rest differently.
    return lax.scan(step, rule.init(params), rows)


def _skipped(state: Any) -> jax.Array:
    """Return how many steps guards have skipped so far, those of Optax too."""
    ends = [tuple(name.split("/")) for name in SKIPPED]
    counts = [value for name, value in metrics(state).items() if (name.split("/")[0], name.split("/")[-1]) in ends]
    counts += [count for _, count in optax.tree.get_all_with_path(state, "total_notfinite")]
    return sum(counts, jnp.zeros((), jnp.int32))


def _losses(record: Record) -> np.ndarray | None:
    """Return the losses; a row without one, which reads NaN, has that of the row before. None if there are none."""
    known = ~np.isnan(record.losses)
    if not known.any():
        return None
    # A loss that was NaN and one that was not logged look alike; the former comes with a norm that is not finite.
    last = np.maximum.accumulate(np.where(known, np.arange(known.size), -1))
    filled = np.where(last >= 0, record.losses[np.maximum(last, 0)], record.losses[known][0])
    return _float32(np.where(known | np.isfinite(record.norms), filled, record.losses))


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32)
