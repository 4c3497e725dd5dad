"""What clipping did: the statistics in an optimizer state."""

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.arguments import check_integer
from novoclip.clip_state import ClipState
from novoclip.granularity import resolve_measure
from novoclip.guards.nonfinite import NonfiniteState
from novoclip.guards.spike_state import SpikeState
from novoclip.leaves import unwrapped
from novoclip.measure import Measure
from novoclip.norms_by_name import chosen, matching, named_norms, watched
from novoclip.optimizers.algorithm import OptimizerState
from novoclip.paths import make_path, some_of
from novoclip.precision.loss_scale import LossScaleState
from novoclip.wrappers.carry import CarryState
from novoclip.wrappers.watch_state import WatchState, score_figures

# Which of a state's fields are reported, and under which name.
REPORTED: dict[Any, tuple[str, tuple[str, ...]]] = {
    ClipState: ("clip", ("steps", "norms", "norms_after", "limits", "fraction", "clipped", "nonfinite")),
    OptimizerState: ("optimizer", ("steps", "nonfinite")),
    CarryState: ("carry", ("steps", "nonfinite")),
    WatchState: ("watch", ("steps", "seen_at")),
    LossScaleState: ("loss_scale", ("steps", "scale", "skipped", "skipped_in_a_row")),
    NonfiniteState: ("guard", ("steps", "nonfinite")),
    SpikeState: (
        "spikes",
        (
            *("steps", "skipped", "nonfinite", "norm_spikes", "value_spikes", "released"),
            *("norm", "limit", "value_limit", "clip_limit", "clipped"),
        ),
    ),
}

ONE = {"norms": "norm", "norms_after": "norm_after", "limits": "limit"}


def metrics(
    opt_state: Any,
    params: Any = None,
    *,
    per: str | Measure = "tensor",
    top: int | None = None,
    only: str | None = None,
) -> dict[str, jax.Array]:
    """Collect the statistics of every rule in an optimizer state; given the parameters, also the norms by name.

    Works on the state of a chain, a partition, a mask, MultiSteps and `nnx.Optimizer`, in
    and outside of jit, and waits for nothing: the values are arrays until somebody reads them.

    Args:
      opt_state: any pytree that contains a state of novoclip.
      params: the parameters that `init` was given. For each rule with several blocks the result then has the norm of
        each, before and after the clip, and its limit: `clip/norm/decoder/layers_0/kernel`, `clip/norm_after/...`,
        `clip/limit/...`. Per unit, it is the unit of each tensor that is furthest above its limit. Where names do not
        fit the state, as with a `mask`, of which a state does not know, they are numbers: `clip/norm/0`.
      per: the blocks, for their names, if they are no tensors: the Measure that the rule was given, such as
        `groups(label_of)`, whose labels are the names, or `tensors(stacked=1)`, whose layers are numbered.
      top: of each rule, only the blocks with the largest norms, this many, NaN and infinity first; None for all. It
        reads the norms, and so waits for the device; inside jit it raises.
      only: only names that match this pattern, as in `fnmatch`, or begin with it: "decoder", "*/kernel".

    Returns:
      A flat dict of scalars. `clip/steps`, `clip/clipped` and `clip/nonfinite` count steps since the
      start; `clip/fraction` is the fraction of blocks that the last step clipped, and what follows is the
      last step's too (per element only `clip/steps`, unless counting was asked for). A rule with one
      block adds `clip/norm`, `clip/norm_after` (after clipping) and `clip/limit`. One with many adds the mean and the
      maximum of each, `clip/norm_mean`, `clip/norm_max`, `clip/norm_after_mean` and so on, and
      `clip/norm_max_fraction`, the largest norm as a fraction of the root of the sum of squares of all: near 1, one
      block has nearly the whole norm, and a clip by the global norm before Adam makes the steps of the others small.
      Optimizers add `optimizer/steps` and `optimizer/nonfinite`, `guard_nonfinite` the same of `guard`, `uclip` and
      `clip21` of `carry`. `skip_spikes` adds `spikes/steps`, `skipped`, of which `nonfinite`, `norm_spikes`,
      `value_spikes` (steps whose norm, or loss, was above its limit), `released`, `norm`, `limit`, `value_limit`, and
      with `clip=` `clip_limit` and `clipped`. `watch` adds `watch/spike_score` and what its docstring says,
      `loss_scaling` `loss_scale/scale`, `skipped` and `skipped_in_a_row`. Empty if there is none.

      Names from the state stand after the kind: "body" of `optax.named_chain(("body", rule))`, or a label of
      `optax.partition`, gives `clip/body/norm`, with or without other rules. The first rule of a kind without a name is
      `clip/norm`, and a further one has its place in the chain, `clip/1/norm`, or in the wrappers around it,
      `clip/inner/0/norm`. A rule that is added after others changes none of their keys; one that is added
      before them takes their places. Where that matters, use `optax.named_chain`.

    Raises:
      TypeError: if `top` is given inside jit, or an argument has the wrong type.
      ValueError: if `top` or `only` is given without `params`, `top` is below 1, `only` matches nothing, or a state
        has leading axes, as those of `jax.vmap`, `jax.pmap` and `jax.lax.scan` have. Write
        `jax.vmap(metrics)(opt_state)`, or take one part, `jax.tree.map(lambda x: x[0], opt_state)`.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> optimizer = optax.chain(novoclip.clip_by_global_norm(1.0), optax.adam(1e-3))
      >>> params = {"w": jnp.zeros(2)}
      >>> updates, state = optimizer.update({"w": jnp.array([3.0, 4.0])}, optimizer.init(params))
      >>> for name, value in metrics(state).items():
      ...     print(name, value)
      clip/steps 1
      clip/norm 5.0
      clip/norm_after 1.0
      clip/limit 1.0
      clip/fraction 1.0
      clip/clipped 1
      clip/nonfinite 0
      >>> rule = novoclip.clip_by_norm(1.0)
      >>> params = {"a": jnp.ones(4), "b": jnp.ones(1)}
      >>> updates, state = rule.update(params, rule.init(params))
      >>> report = metrics(state, params)
      >>> print(report["clip/norm/a"], report["clip/norm_after/a"], report["clip/norm/b"])
      2.0 1.0 1.0
    """
    measure = _measure_of_names(params, per, top, only)
    report: dict[str, jax.Array] = {}
    seen: set[str] = set()
    for kind, (name, fields) in REPORTED.items():
        for place, keys, state in with_places(states_of(opt_state, kind)):
            prefix = f"{name}/{place}" if place else name
            _check_axes(prefix, state)
            report |= {f"{prefix}/{field}": value for field, value in _statistics(state, fields).items()}
            if kind is ClipState and params is not None:
                found = named_norms(state, measure, params, _tables(opt_state, keys))
                seen |= set(found.get("norm", ()))
                for block in chosen(found.get("norm", {}), top, only):
                    report |= {f"{prefix}/{field}/{block}": values[block] for field, values in found.items()}
            if kind is WatchState:
                names = None if params is None else measure.names(params)
                seen |= set(names or ())
                figures = score_figures(state) | watched(state.seen, names, top, only)
                report |= {f"{prefix}/{key}": value for key, value in figures.items()}
    if only is not None and not matching(seen, only):
        msg = f"only={only!r} matches no name; the names are {some_of(sorted(seen))}"
        raise ValueError(msg)
    return report


def _measure_of_names(params: Any, per: str | Measure, top: Any, only: Any) -> Measure:
    if top is not None:
        check_integer("top", top, low=1)
    if only is not None and not isinstance(only, str):
        msg = f"only must be a pattern of names, such as 'decoder' or '*/kernel'; got {only!r}"
        raise TypeError(msg)
    if params is None and (top is not None or only is not None):
        msg = "top= and only= choose among norms by name: give the parameters, metrics(opt_state, params, ...)"
        raise ValueError(msg)
    return resolve_measure(per)


def _tables(tree: Any, keys: tuple[Any, ...]) -> list[tuple[str, list[str]]]:
    """Return the keys of dicts on the way to a state, each with all keys of its dict."""
    found = []
    for key in keys:
        if isinstance(key, jax.tree_util.DictKey) and isinstance(tree, dict):
            found.append((str(key.key), [str(name) for name in tree]))
        tree = _child(tree, key)
    return found


def _child(tree: Any, key: Any) -> Any:
    if isinstance(key, jax.tree_util.GetAttrKey):
        return getattr(tree, key.name)
    return tree[key.idx if isinstance(key, jax.tree_util.SequenceKey) else getattr(key, "key", key)]


def states_of(tree: Any, kind: type) -> list[tuple[tuple[Any, ...], Any]]:
    """Return all states of a kind with their keys, also those within another, after it."""

    def at(node: Any) -> bool:
        return node is not tree and isinstance(node, kind)

    found = [((), tree)] if isinstance(tree, kind) else []
    for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=at):
        if at(node):
            found += [((*keys, *inner), state) for inner, state in states_of(node, kind)]
    return found


def with_places(states: list[tuple[tuple[Any, ...], Any]]) -> list[tuple[str, tuple[Any, ...], Any]]:
    """Return each state with what tells it apart, its names, or all of its keys if another has them, and its keys."""
    places: dict[str, Any] = {}
    for keys, state in states:
        names = make_path(key for key in keys if isinstance(key, jax.tree_util.DictKey))
        choices = (str(names), str(make_path(keys)), jax.tree_util.keystr(keys))
        places[next(place for place in choices if place not in places)] = keys, state
    return [(place, *found) for place, found in places.items()]


def _check_axes(name: str, state: Any) -> None:
    axes = _array(state.steps).shape
    if axes:
        msg = (
            f"the state of {name} has leading axes of sizes {axes}, as jax.vmap and jax.pmap return it: write "
            "jax.vmap(novoclip.metrics)(opt_state), or take one part, jax.tree.map(lambda x: x[0], opt_state)"
        )
        raise ValueError(msg)


def _largest_fraction(norms: jax.Array) -> jax.Array:
    """Return the largest norm as a fraction of the root of the sum of squares.

    It is 0 where all are 0, NaN where one is NaN, and else 1 where one is infinite.
    """
    unknown, infinite = jnp.any(jnp.isnan(norms)), jnp.any(jnp.isinf(norms))
    finite = jnp.where(jnp.isfinite(norms), norms, 0)
    largest = jnp.max(finite, initial=0)
    relative = finite / jnp.where(largest > 0, largest, 1)
    share = jnp.where(largest > 0, 1 / jnp.sqrt(jnp.maximum(jnp.sum(relative**2), 1)), 0)
    return jnp.where(unknown, jnp.nan, jnp.where(infinite, 1, share))


def _statistics(state: Any, fields: tuple[str, ...]) -> dict[str, jax.Array]:
    kept = {name: _array(getattr(state, name)) for name in fields if not isinstance(getattr(state, name), tuple)}
    statistics: dict[str, jax.Array] = {}
    for name, value in kept.items():
        if name not in ONE:
            statistics[name] = value
        elif value.ndim == 0:
            statistics[ONE[name]] = value
        else:
            statistics[f"{ONE[name]}_mean"] = jnp.sum(value) / max(value.size, 1)
            statistics[f"{ONE[name]}_max"] = jnp.max(value, initial=0)
            if name == "norms":
                statistics["norm_max_fraction"] = _largest_fraction(value)
    return statistics


def _array(leaf: Any) -> jax.Array:
    return jnp.asarray(unwrapped(leaf))
