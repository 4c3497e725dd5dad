"""How many bytes the state of an optimizer takes, in all, per transform and per device."""

from __future__ import annotations

from collections.abc import Iterator
import math
from typing import Any, NamedTuple

import jax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey
import optax

from novoclip.leaves import is_measured
from novoclip.paths import leaves_with_paths, make_path, some_of

SUMS = ("total", "per_parameter", "per_device")
# Fields in which wrappers keep the states of other transforms, beside those whose names begin with "inner".
HELD = frozenset({"adv_state", "base_optimizer_state", "clip", "fast_state", "opt_state"})
Keys = tuple[Any, ...]


class StateBytes(dict[str, float]):
    """The bytes of an optimizer state, by place, with their sums; printed, it is a table.

    Attributes:
      kinds: for each place, the name of the class of the state.
    """

    kinds: dict[str, str]

    def __str__(self) -> str:
        """Return a table of the places that take bytes, and the sums."""
        rows = [(place, f"{self[place]:,}", kind) for place, kind in self.kinds.items() if self[place]]
        sums = [name for name in SUMS if name in self]
        rows += [(name, f"{self[name]:,.4g}" if name == "per_parameter" else f"{self[name]:,}", "") for name in sums]
        names, sizes = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join(f"{name:<{names}}  {size:>{sizes}}  {kind}".rstrip() for name, size, kind in rows)


class _Part(NamedTuple):
    """The arrays that a transform keeps itself, each with its keys in the whole state."""

    keys: Keys
    kind: str
    arrays: list[tuple[Keys, Any]]


def state_bytes(tx: optax.GradientTransformation, params: optax.Params, *, shardings: Any = None) -> StateBytes:
    """Count the bytes that the state of an optimizer takes, before anything is allocated.

    The state is that of `tx.init(params)`, whose shapes and dtypes are found by `jax.eval_shape`.

    Args:
      tx: any transform: an optimizer, a clipping rule, or a chain of such.
      params: the parameters, or `jax.ShapeDtypeStruct`s in their places.
      shardings: how the parameters are sharded: a pytree like them, of `jax.sharding.NamedSharding`, or of arrays or
        ShapeDtypeStructs that have a sharding, such as the parameters themselves. None for no count per device.

    Returns:
      A dict of numbers of bytes, which prints as a table. "total" counts all arrays, and "per_parameter" is the total
      over the number of elements of the parameters that are real or complex. Each transform has an entry, under its
      place in the chain or its name, as in `novoclip.metrics`: "0", "1/0", "inner/1", or "body" of
      `optax.named_chain(("body", rule))` or of `optax.partition`. What stands alone has the name of its state's class.
      These entries add up to the total; those of 0 are not printed.

      With `shardings` there is "per_device": an array of the shape of its parameter is counted as the parameter is
      sharded, and any other as a whole. Its parameter is the one whose path is a part of its own path. Where there is
      none, it is the least sharded parameter of that shape.

    Raises:
      TypeError: if `tx` is no transform, or an entry of `shardings` has no sharding.
      ValueError: if `shardings` has another structure than the parameters.

    Example:
      >>> import jax, jax.numpy as jnp, novoclip, optax
      >>> optimizer = optax.chain(novoclip.autoclip(90.0, window=100), novoclip.adam(1e-3))
      >>> params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.bfloat16)}
      >>> found = state_bytes(optimizer, params)
      >>> print(found["total"], found["1"], f"{found['per_parameter']:.3f}")
      8000464 8000028 8.000
      >>> print(found)
      0                    436  ClipState
      1              8,000,028  OptimizerState
      total          8,000,464
      per_parameter          8
    """
    if not callable(getattr(tx, "init", None)):
        msg = f"tx must be a transform, such as optax.adam(1e-3) or a chain; got {tx!r}"
        raise TypeError(msg)
    parts = list(_parts((), _state_shapes(tx, params)))
    places = _places(parts)
    found = StateBytes({place: sum(_size(array) for _, array in part.arrays) for place, part in places.items()})
    found.kinds = {place: part.kind for place, part in places.items()}
    total = sum(found.values())
    elements = sum(_elements(leaf) for leaf in jax.tree.leaves(params) if is_measured(leaf))
    found |= {"total": total, "per_parameter": total / max(elements, 1)}
    if shardings is not None:
        split = _Split(params, shardings)
        found["per_device"] = sum(split.size(keys, array) for part in parts for keys, array in part.arrays)
    return found


def _state_shapes(tx: optax.GradientTransformation, params: optax.Params) -> Any:
    """Return the state's shapes. Leaves that are no arrays, such as functions, are passed to `init` as they are."""
    leaves, structure = jax.tree.flatten(params)
    numeric = [hasattr(leaf, "dtype") or isinstance(leaf, complex | float | int) for leaf in leaves]

    def init(arrays: list[Any]) -> Any:
        rest = iter(arrays)
        return tx.init(
            jax.tree.unflatten(structure, [next(rest) if on else x for on, x in zip(numeric, leaves, strict=True)])
        )

    return jax.eval_shape(init, [leaf for on, leaf in zip(numeric, leaves, strict=True) if on])


def _is_state(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields") and not isinstance(node, optax.MaskedNode)


def _parts(keys: Keys, node: Any) -> Iterator[_Part]:
    """Yield the part of each transform."""
    members = _members(node)
    held = members
    if _is_state(node):
        held = [member for member in members if str(member[0].name).startswith("inner") or member[0].name in HELD]
    inner = [part for key, child in held for part in _parts((*keys, key), child)]
    arrays = [((*keys, *inside), array) for inside, array in jax.tree_util.tree_leaves_with_path(node)]
    beneath = {inside for part in inner for inside, _ in part.arrays}
    own = [(inside, array) for inside, array in arrays if inside not in beneath]
    # The state of an argument `clip=` that is not given is an empty tuple.
    if own or not (inner or (type(node) is tuple and not node)):
        yield _Part(keys, type(node).__name__, own)
    yield from inner


def _members(node: Any) -> list[tuple[Any, Any]]:
    """Return what a state, or a tuple or dict with states in it, consists of. Anything else has no members."""
    if _is_state(node):
        return [(GetAttrKey(name), getattr(node, name)) for name in node._fields]
    if not any(map(_is_state, jax.tree.leaves(node, is_leaf=_is_state))):
        return []
    if isinstance(node, dict):
        return [(DictKey(name), node[name]) for name in sorted(node)]
    return [(SequenceKey(i), child) for i, child in enumerate(node)] if isinstance(node, tuple | list) else []


def _places(parts: list[_Part]) -> dict[str, _Part]:
    """Return each part by its names in dicts, by all of its keys if it has none or another has them, or its kind."""
    places: dict[str, _Part] = {}
    # The parts without arrays last, so that they take no name from the others.
    for part in sorted(parts, key=lambda part: not part.arrays):
        names = str(make_path(key for key in part.keys if isinstance(key, DictKey)))
        choices = (names, str(make_path(part.keys)), part.kind, jax.tree_util.keystr(part.keys))
        places[next(place for place in choices if place and place not in (*places, *SUMS))] = part
    return {place: part for part in parts for place, found in places.items() if found is part}


def _elements(array: Any) -> int:
    return math.prod(getattr(array, "shape", ()))


def _size(array: Any) -> int:
    return _elements(array) * int(array.dtype.itemsize)


class _Split:
    """How many bytes of an array one device holds, with parameters that are sharded as given."""

    def __init__(self, params: optax.Params, shardings: Any) -> None:
        places = leaves_with_paths(params)
        expected: Any = jax.tree.structure(params)
        if jax.tree.structure(shardings) != expected:
            found = [path for path, _ in leaves_with_paths(shardings)]
            msg = f"shardings must be a pytree like the parameters, whose leaves are {some_of(p for p, _ in places)}; "
            msg += f"got one with {some_of(found)}: write jax.tree.map(lambda x: x.sharding, params), for example"
            raise ValueError(msg)
        self.by_keys: dict[Keys, tuple[tuple[int, ...], int]] = {}
        self.by_shape: dict[tuple[int, ...], int] = {}
        flat = jax.tree_util.tree_leaves_with_path(params)
        for (keys, leaf), (path, _), given in zip(flat, places, jax.tree.leaves(shardings), strict=True):
            if not is_measured(leaf):
                continue
            sharding = given if isinstance(given, jax.sharding.Sharding) else getattr(given, "sharding", None)
            if sharding is None:
                msg = f"shardings must hold a NamedSharding, or an array with one, for {path!r}; got {given!r}"
                raise TypeError(msg)
            shape = tuple(getattr(leaf, "shape", ()))
            part = math.prod(sharding.shard_shape(shape))
            self.by_keys[keys] = shape, part
            self.by_shape[shape] = max(part, self.by_shape.get(shape, 0))

    def size(self, keys: Keys, array: Any) -> int:
        """Return the bytes of one device's part of an array in the state, which has these keys."""
        ends = range(len(keys), -1, -1)
        for within in (keys[start:end] for end in ends for start in range(end + 1)):
            shape, part = self.by_keys.get(within, (None, 0))
            if shape == array.shape:
                return part * int(array.dtype.itemsize)
        return self.by_shape.get(array.shape, _elements(array)) * int(array.dtype.itemsize)
