"""Arguments about paths that match nothing, or cannot tell leaves apart, raise; hidden leaves do not matter."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

import novoclip

PARAMS = {"head": jnp.ones((2, 2)), "layers": {"bias": jnp.ones((3, 2)), "kernel": jnp.ones((3, 2, 2))}}
ALIKE = {"a": {"b": jnp.ones((2, 2))}, "a/b": jnp.ones((2, 2))}
STACKS = {
    "tensors": lambda stacked: novoclip.clip_by_norm(1.0, per=novoclip.tensors(stacked=stacked)),
    "units": lambda stacked: novoclip.clip_by_norm(1.0, per=novoclip.units("flax", stacked=stacked)),
    "centralize": lambda stacked: novoclip.centralize(stacked=stacked),
    "spectral": lambda stacked: novoclip.clip_by_spectral_norm(1.0, stacked=stacked),
    "adagrad": lambda stacked: novoclip.adagrad(0.1, per=novoclip.tensors(stacked=stacked)),
    "novograd": lambda stacked: novoclip.novograd(0.1, per=novoclip.tensors(stacked=stacked)),
    "guarded": lambda stacked: novoclip.skip_spikes(novoclip.agc(0.1, per=novoclip.units(0, stacked=stacked))),
    "shards": lambda sharded: novoclip.across_shards(optax.sgd(0.1), axis_name="i", sharded=truth(sharded)),
}
SPECS = {
    "tensors": lambda specs: novoclip.clip_by_norm(1.0, per=novoclip.tensors(specs=specs)),
    "units": lambda specs: novoclip.clip_by_norm(1.0, per=novoclip.units("flax", specs=specs)),
    "centralize": lambda specs: novoclip.centralize(specs=specs),
}
ENTRIES = ({"head": 0, "layers": 1}, {"head": 0, "layers": {"bias": 1, "kernel": 1}})
PATHS = "the paths are 'head', 'layers/bias', 'layers/kernel'|of 'head', 'layers/bias', 'layers/kernel'"


def truth(stacked):
    return (lambda path, leaf: bool(stacked(path, leaf))) if callable(stacked) else jax.tree.map(bool, stacked)


def in_layers(path, leaf):
    return path.startswith("layers")


@pytest.mark.parametrize("name", STACKS)
def test_a_function_that_matches_no_leaf_is_refused(name):
    make = STACKS[name]
    with pytest.raises(ValueError, match=PATHS):
        jax.eval_shape(make(lambda path, leaf: "layer_s" in path).init, PARAMS)
    jax.eval_shape(make(in_layers).init, PARAMS)
    jax.eval_shape(make(in_layers).init, {})


@pytest.mark.parametrize("name", STACKS)
def test_an_entry_that_names_no_leaf_is_refused(name):
    make = STACKS[name]
    for entries in ({"head": 0, "layers": 1, "tail": 0}, {"head": 0, "layers": {"bias": 1, "kernel": 1, "tail": 1}}):
        with pytest.raises(ValueError, match=f"has an entry for '.*tail'.*({PATHS})"):
            jax.eval_shape(make(entries).init, PARAMS)
    for entries in (*ENTRIES, 1):
        jax.eval_shape(make(entries).init, PARAMS)


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_that_names_no_leaf_is_refused(name):
    make, none = SPECS[name], PartitionSpec()
    for entries in ({"layer": none}, {"head": none, "layers": {"bais": none}}):
        with pytest.raises(ValueError, match=f"specs has an entry for '(layer|layers/bais)'.*{PATHS}"):
            jax.eval_shape(make(entries).init, PARAMS)
    for entries in ({"head": none}, {"layers": none}, {"layers": {"kernel": none}}, none, None, {}):
        jax.eval_shape(make(entries).init, PARAMS)


def test_a_spec_may_stand_above_its_leaves():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    tree = {"layers": {"a": jnp.arange(8.0).reshape(4, 2), "b": jnp.ones((4, 2))}}
    measure = novoclip.units(0, specs={"layers": PartitionSpec("data")})
    norms = jax.shard_map(measure.norms, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec())
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), jax.jit(norms)(tree), novoclip.units(0).norms(tree)
    )


def test_functions_that_reduce_no_axis_are_refused():
    for make in (lambda axes: novoclip.clip_by_norm(1.0, per=novoclip.units(axes)), novoclip.centralize):
        with pytest.raises(ValueError, match=r"axes is \(\) for every leaf; the paths are 'head', 'layers/"):
            jax.eval_shape(make(lambda path, leaf: (0,) if "layer_s" in path else ()).init, PARAMS)
        jax.eval_shape(make(lambda path, leaf: (0,) if "layers" in path else ()).init, PARAMS)
        jax.eval_shape(make(lambda path, leaf: ()).init, {"scale": jnp.ones(())})  # which has no axis


@pytest.mark.parametrize("stacked", [in_layers, *ENTRIES])
@pytest.mark.parametrize("name", STACKS)
def test_what_matches_hidden_leaves_passes(name, stacked):
    rule = STACKS[name](stacked)
    hidden = {
        "partition": optax.partition({"x": rule, "y": rule}, {"head": "x", "layers": "y"}),
        "mask": optax.masked(rule, {"head": True, "layers": False}),
        "mask of leaves": optax.masked(rule, {"head": True, "layers": {"bias": False, "kernel": False}}),
    }
    for transform in hidden.values():
        jax.eval_shape(transform.init, PARAMS)
    jax.eval_shape(rule.init, {"head": PARAMS["head"], "layers": None})
    # What is hidden excuses no entry elsewhere.
    if not callable(stacked):
        with pytest.raises(ValueError, match="has an entry for 'tail'"):
            jax.eval_shape(
                optax.masked(STACKS[name](stacked | {"tail": 1}), {"head": True, "layers": False}).init, PARAMS
            )


def test_a_mask_that_selects_only_hidden_leaves_passes():
    kernels = functools.partial(jax.tree.map, lambda x: x.ndim > 2)
    descent = novoclip.adam(0.1, weight_decay=0.1, weight_decay_mask=kernels)
    parts = optax.partition({"x": descent, "y": descent}, {"head": "x", "layers": "y"})
    jax.eval_shape(lambda tree: parts.update(tree, parts.init(tree), tree), PARAMS)
    with pytest.raises(ValueError, match="the mask of weight_decay selects no leaf, of 'head'"):
        jax.eval_shape(lambda tree: descent.update(tree, descent.init(tree), tree), {"head": PARAMS["head"]})


def test_functions_of_paths_refuse_two_leaves_with_one_path():
    for name, rule in {
        "label_of": novoclip.clip_by_norm(1.0, per=novoclip.groups(lambda path, leaf: path)),
        "axes": novoclip.clip_by_norm(1.0, per=novoclip.units(lambda path, leaf: 0)),
        "stacked": novoclip.clip_by_norm(1.0, per=novoclip.tensors(stacked=lambda path, leaf: 1)),
        "sharded": novoclip.across_shards(optax.sgd(0.1), axis_name="i", sharded=lambda path, leaf: True),
    }.items():
        with pytest.raises(ValueError, match=f"{name} is a function of paths, but two leaves have the path 'a/b'"):
            jax.eval_shape(rule.init, ALIKE)
    for measure in (novoclip.tensors(), novoclip.units(0), novoclip.tensors(stacked={"a": 1, "a/b": 0})):
        measure.norms(ALIKE)
