"""Which norm is which: the entries of the vectors in the states of rules, under the paths of the parameters."""

from collections.abc import Iterable, Mapping, Sequence
import fnmatch
from typing import Any

import jax
import numpy as np

from novoclip.by_name import name_for
from novoclip.clip_state import ClipState
from novoclip.leaves import unwrapped
from novoclip.measure import Measure

FIELDS = {"norm": "norms", "norm_after": "norms_after", "limit": "limits"}


def named_norms(
    state: ClipState, measure: Measure, params: Any, tables: Sequence[tuple[str, list[str]]]
) -> dict[str, dict[str, jax.Array]]:
    """Return the norms, the norms after clipping and the limits of a state, each by the names of its blocks.

    Args:
      state: the state of a rule.
      measure: the blocks, which give their names.
      params: the parameters that `init` was given.
      tables: the names in the state above this one, each with the names beside it, as thresholds by name have.

    Returns:
      A mapping from "norm", "norm_after" and "limit" to mappings from names to scalars. Where the names do not fit, as
      with a mask, of which the state does not know, they are numbers. Empty for a rule with one block.
    """
    vectors = {key: _array(getattr(state, field)) for key, field in FIELDS.items()}
    vectors = {key: vector for key, vector in vectors.items() if vector is not None and vector.ndim == 1}
    if "norm" not in vectors:
        return {}
    names, size = measure.names(params), vectors["norm"].size
    for own, beside in tables if len(names) != size else ():
        # Those of `optax.named_chain` match nothing, or hold what they do by chance: then the number does not fit.
        names = [name for name in names if name_for(name, beside, "params") == own] or names
    if len(names) != size:
        names = [str(i) for i in range(size)]
    return {key: dict(zip(names, list(vector), strict=True)) for key, vector in vectors.items()}


def watched(seen: Any, names: list[str] | None, top: int | None, only: str | None) -> dict[str, jax.Array]:
    """Return the figures in the state of a `watch`: the largest of each, and with names, those of each block.

    Args:
      seen: of each pytree, by name, its figures: "norm", "rms" and "max", each a vector, or one number.
      names: the names of the blocks, or None.
      top: of each pytree, only this many blocks, those with the largest norms; None for all.
      only: only names that match this pattern.
    """
    report: dict[str, jax.Array] = {}
    for tree, figures in seen.items():
        arrays = {f"{tree}/{name}" if tree != "ratio" else tree: _array(x) for name, x in figures.items()}
        arrays.pop(f"{tree}/histogram", None)
        for key, array in arrays.items():
            report[key if array.ndim == 0 else f"{key}_max"] = jax.numpy.max(array, initial=0)
        norms = _array(figures["norm"])
        if names is None or norms.ndim == 0:
            continue
        own = names if len(names) == norms.size else [str(i) for i in range(norms.size)]
        listed = {key: dict(zip(own, list(array), strict=True)) for key, array in arrays.items()}
        for block in chosen(dict(zip(own, list(norms), strict=True)), top, only):
            report |= {f"{key}/{block}": values[block] for key, values in listed.items()}
    return report


def matching(names: Iterable[str], only: str) -> list[str]:
    """Return the names that match a pattern, or begin with it."""
    return [name for name in names if fnmatch.fnmatchcase(name, only) or name.startswith(only.rstrip("/") + "/")]


def chosen(found: Mapping[str, jax.Array], top: int | None, only: str | None) -> list[str]:
    """Return the names to report: those that match a pattern, or begin with it, and of those the largest."""
    names = list(found) if only is None else matching(found, only)
    if top is None or not names:
        return names
    if any(isinstance(found[name], jax.core.Tracer) for name in names):
        msg = "top= needs the values, which are not known inside jit: call metrics outside, or give only="
        raise TypeError(msg)
    sizes = np.asarray([found[name] for name in names], np.float64)
    order = np.argsort(-np.nan_to_num(sizes, nan=np.inf, posinf=np.inf), kind="stable")
    return [names[i] for i in order[:top]]


def _array(field: Any) -> Any:
    if isinstance(field, tuple):
        return None
    return jax.numpy.asarray(unwrapped(field))
