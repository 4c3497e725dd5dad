"""What is checked, the trees it is checked with, and the truth in float64."""

from collections.abc import Iterator
import contextlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

SHAPES = {"kernel": (4, 3), "bias": (3,), "scale": (), "convolution": (2, 3, 2)}


class Subject(NamedTuple):
    """A transform, and what it promises.

    Attributes:
      transform: the transform. For every kind but "any" its state is a NamedTuple with a field `steps`: a
        `novoclip.ClipState` for "clip" and "record", an `OptimizerState` for "optimizer".
      kind: "clip", "record", "optimizer", "wrapper" (around another transform), "transform" (any other with
        such a state), or "any" (whatever its state is).
      shape: what becomes of a block beyond its limit, as in `novoclip.clip`.
      per: the blocks that are clipped: "tree", "tensor", "unit" or "element".
      norm: "l1", "l2", "max" or "rms".
      strict: whether to forbid implicit promotion of dtypes and ranks in init and update.
    """

    transform: optax.GradientTransformation
    kind: str = "clip"
    shape: str = "hard"
    per: str = "tree"
    norm: str = "l2"
    strict: bool = True

    def init(self, params: Any) -> Any:
        """Return the transform's state."""
        with self._promotion():
            return self.transform.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        """Return the transform's (updates, state)."""
        with self._promotion():
            extended = optax.with_extra_args_support(self.transform)
            return extended.update(updates, state, params, **extra)

    @contextlib.contextmanager
    def _promotion(self) -> Iterator[None]:
        if not self.strict:
            yield
            return
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            yield


def numbers(leaf: Any) -> np.ndarray:
    """Return a leaf as a NumPy array; of typed random keys, their data."""
    key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf)


def dtypes() -> list[Any]:
    """Return the floating dtypes to check: float64 only where JAX has it enabled."""
    common = [jnp.float16, jnp.bfloat16, jnp.float32]
    return [*common, jnp.float64] if jnp.array(0.0).dtype == jnp.float64 else common


def random_tree(seed: int = 0, dtype: Any = jnp.float32, scale: float = 1.0) -> dict[str, jax.Array]:
    """Return a tree of four normally distributed leaves of rank 0 to 3, times `scale`."""
    generator = np.random.default_rng(seed)
    draw = {name: scale * generator.normal(size=shape) for name, shape in SHAPES.items()}
    return {name: jnp.asarray(np.asarray(leaf), dtype) for name, leaf in draw.items()}


def true_norms(tree: Any, per: str, norm: str) -> np.ndarray:
    """Return the norms of a tree's blocks, computed in float64 by NumPy."""
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
    # Scaled by the largest, so that squares stay in float64's range.
    total = float(np.sum(np.square(sizes / largest)))
    return largest * math.sqrt(total / (block.size if norm == "rms" else 1))
