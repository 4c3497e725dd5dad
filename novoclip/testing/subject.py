"""The subject of the checks, the pytrees that it is checked with, and reference results in float64."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPES = {"kernel": (4, 3), "bias": (3,), "scale": (), "convolution": (2, 3, 2)}
# For eager runs, in which each operation is compiled for each shape.
SMALL = {"kernel": (4, 3)}


class Subject(NamedTuple):
    """A transform, and what it promises.

    Attributes:
      transform: the transform. For every kind but "any" its state is a NamedTuple with a field `steps`: a
        `novoclip.ClipState` for "clip" and "record", an `OptimizerState` for "optimizer".
      kind: "clip", "record", "optimizer", "wrapper" (around another transform), "transform" (any other with
        such a state), or "any" (with any state).
      shape: what becomes of a block beyond its limit, as in `novoclip.clip_by_limit`.
      per: the blocks that are clipped: "tree", "tensor", "unit" or "element".
      norm: "l1", "l2", "max" or "rms".
      strict: whether to forbid implicit promotion of dtypes and ranks in init and update.
      of_spikes: for "clip", the largest fraction of a gradient ten thousand times larger than the three before that
        passes, in any block. A rule that learns a norm before it computes the limit passes more of it.
    """

    transform: optax.GradientTransformation
    kind: str = "clip"
    shape: str = "hard"
    per: str = "tree"
    norm: str = "l2"
    strict: bool = True
    of_spikes: float = 0.1

    def init(self, params: Any) -> Any:
        """Return the transform's state, computed operation by operation."""
        with self._promotion():
            return self.transform.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        """Return the transform's (updates, state), computed operation by operation."""
        with self._promotion():
            extended = optax.with_extra_args_support(self.transform)
            return extended.update(updates, state, params, **extra)

    @property
    def jitted(self) -> "Jitted":
        """Init and update, compiled once for each type of arguments and shared by all checks."""
        return _jitted(self.transform, self.strict)

    @contextlib.contextmanager
    def _promotion(self) -> Iterator[None]:
        if not self.strict:
            yield
            return
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            yield


class Jitted(NamedTuple):
    """A subject's compiled functions.

    Attributes:
      init: the transform's init.
      update: the transform's update.
      traces: the dtypes of the gradients, for each time that update was traced.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    traces: list[Any]


# Only a few subjects at a time, since programs use memory.
@functools.lru_cache(maxsize=4)
def _jitted(transform: optax.GradientTransformation, strict: bool) -> Jitted:
    subject = Subject(transform, strict=strict)
    traces: list[Any] = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        traces.append(jax.tree.map(jnp.result_type, updates))
        return subject.update(updates, state, params, **extra)

    return Jitted(jax.jit(subject.init), jax.jit(update), traces)


def numbers(leaf: Any) -> np.ndarray:
    """Return a leaf as a NumPy array; for typed random keys, their data."""
    key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf)


def dtypes() -> list[Any]:
    """Return the floating dtypes in which types are checked: float64 only if JAX has it enabled."""
    common = [jnp.float16, jnp.bfloat16, jnp.float32]
    return [*common, jnp.float64] if _double() else common


def computed_dtypes() -> list[Any]:
    """Return the floating dtypes in which values are checked: only float64 if JAX has it enabled, else the others."""
    return [jnp.float64] if _double() else dtypes()


def main_dtype(*, imaginary: bool = False) -> Any:
    """Return the widest real or complex dtype, in which most checks run, so that little is compiled for others."""
    return jnp.result_type(complex if imaginary else float)


def _double() -> bool:
    return jnp.result_type(float) == jnp.float64


def random_tree(
    seed: int = 0, dtype: Any = None, scale: float = 1.0, shapes: Mapping[str, tuple[int, ...]] = SHAPES
) -> dict[str, jax.Array]:
    """Return a pytree of normally distributed leaves, times `scale`: by default four of rank 0 to 3."""
    generator = np.random.default_rng(seed)
    draw = {name: scale * generator.normal(size=shape) for name, shape in shapes.items()}
    return of_dtype(draw, main_dtype() if dtype is None else dtype)


def of_dtype(tree: Any, dtype: Any) -> Any:
    """Return the pytree with its leaves as arrays of one dtype. NumPy casts them, so that nothing is compiled."""
    with np.errstate(over="ignore"):
        return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf).astype(jnp.dtype(dtype))), tree)


def with_element(leaf: jax.Array, value: float, index: int = 1) -> jax.Array:
    """Return the leaf with one of its elements replaced."""
    changed = np.array(leaf)
    changed.ravel()[index] = value
    return jax.device_put(changed)


def filled(tree: Any, value: complex) -> Any:
    """Return a pytree with every element replaced by a value."""
    return jax.tree.map(lambda leaf: jax.device_put(np.full(leaf.shape, value).astype(leaf.dtype)), tree)


def is_finite(tree: Any) -> bool:
    """Whether every element is finite. NumPy checks, so that nothing is compiled."""
    return all(np.all(np.isfinite(np.asarray(leaf))) for leaf in jax.tree.leaves(tree))


def is_zero(tree: Any) -> bool:
    """Whether every element is 0. NumPy checks, so that nothing is compiled."""
    return all(not np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(tree))


def true_norms(tree: Any, per: str, norm: str) -> np.ndarray:
    """Return the norms of a pytree's blocks, computed in float64 by NumPy."""
    leaves = [_widened(leaf) for leaf in jax.tree.leaves(tree)]
    if per == "element":
        blocks = [np.array([x]) for leaf in leaves for x in leaf.ravel()]
    elif per == "unit":
        blocks = [column for leaf in leaves for column in _columns(leaf)]
    elif per == "tensor":
        blocks = [leaf.ravel() for leaf in leaves]
    else:
        blocks = [np.concatenate([leaf.ravel() for leaf in leaves])]
    values = np.array([_norm(block, norm) for block in blocks])
    return values[0] if per == "tree" else values


def shown_limits(subject: Subject, state: Any, norms: np.ndarray, tree: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of a pytree's blocks that a state holds, and which blocks these are.

    Per unit the state holds one limit for each leaf, with the norm of one unit, or the mean over several.

    Raises:
      AssertionError: if the norms in the state are not those of the pytree's blocks.
    """
    seen, limits = (np.asarray(array, np.float64) for array in (state.norms, state.limits))
    if subject.per != "unit":
        np.testing.assert_allclose(seen, norms, rtol=1e-6)
        return limits, np.ones(np.shape(norms), bool)
    units = [len(_columns(np.asarray(leaf))) for leaf in jax.tree.leaves(tree)]
    leaf_of = np.repeat(np.arange(len(units)), units)
    for leaf, found in enumerate(seen):
        least, most = np.min(norms[leaf_of == leaf]), np.max(norms[leaf_of == leaf])
        assert least * (1 - 1e-6) <= found <= most * (1 + 1e-6), f"{found} is not between the norms {least} and {most}"
    return limits[leaf_of], np.abs(norms - seen[leaf_of]) <= 1e-6 * norms


def shaped(norms: np.ndarray, limits: np.ndarray, shape: str) -> np.ndarray:
    """Return the norms of blocks after clipping with a shape, computed in float64 by NumPy."""
    if shape == "normalize":
        return np.where(limits < np.inf, limits, norms)
    if shape == "drop":
        return np.where(norms > limits, 0, norms)
    curves: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "tanh": np.tanh,
        "arctan": lambda ratio: 2 / np.pi * np.arctan(np.pi / 2 * ratio),
        "algebraic": lambda ratio: ratio / np.hypot(1, ratio),
        "smooth": lambda ratio: ratio / (1 + ratio),
    }
    if shape == "hard":
        return np.minimum(norms, limits)
    bent = (limits > 0) & (limits < np.inf)
    safe = np.where(bent, limits, 1)
    return np.where(bent, safe * curves[shape](norms / safe), np.minimum(norms, limits))


def _widened(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _columns(leaf: np.ndarray) -> list[np.ndarray]:
    if leaf.ndim < 2:
        return [leaf.ravel()]
    return list(leaf.reshape(-1, leaf.shape[-1]).T)


def _norm(block: np.ndarray, norm: str) -> float:
    if block.size == 0:
        return 0.0
    sizes = np.abs(block)
    largest = float(np.max(sizes))
    if norm == "max" or largest == 0 or not math.isfinite(largest):
        return largest
    if norm == "l1":
        return float(np.sum(sizes))
    # Scaled by the largest, so that squares stay in the range of float64.
    total = float(np.sum(np.square(sizes / largest)))
    return largest * math.sqrt(total / (block.size if norm == "rms" else 1))
