"""Inside shard_map every transform gives what it gives on one device; and jit over sharded arrays gathers nothing."""

import functools
import re

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import novoclip
from tests.cases import CASES

SPECS = {"columns": P(None, "model"), "rows": P("model", None), "vector": P(("data", "model")), "whole": P()}
STEPS = 3


@pytest.fixture(scope="module")
def mesh():
    return Mesh(mesh_utils.create_device_mesh((2, 4)), ("data", "model"))


def tree(seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"columns": (4, 8), "rows": (8, 4), "vector": (64,), "whole": (3,)}
    return {name: jnp.asarray(generator.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def scanned(transform, params, gradients):
    """The last of three updates, in a scan whose state init has made."""

    def step(state, size):
        updates, state = transform.update(jax.tree.map(lambda g: g * size, gradients), state, params)
        return state, updates

    state, updates = jax.lax.scan(step, transform.init(params), jnp.arange(1.0, STEPS + 1))
    return jax.tree.map(lambda leaf: leaf[-1], updates), novoclip.metrics(state)


def on_mesh(function, mesh, **options):
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(SPECS, SPECS), out_specs=(SPECS, P()), **options))


def split(case):
    """The transform, told how leaves are split where it has to be."""
    arguments = dict(case.arguments)
    if case.argument("per", "") == "unit":
        arguments["per"] = novoclip.units("flax", norm=arguments.pop("norm", "l2"), specs=SPECS)
    if case.entry.make is novoclip.centralize:
        arguments["specs"] = SPECS
    return case.entry.make(**arguments)


WHOLE = [case for case in CASES if case.entry.place != "examples" and "singular value" not in case.entry.per]


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_sharded_leaves_give_what_whole_ones_give(case, mesh):
    params, gradients = jax.tree.map(lambda leaf: 1 + 0.5 * leaf, tree()), tree(1)
    function = functools.partial(scanned, split(case))
    expected, statistics = jax.jit(function)(params, gradients)
    found, reported = on_mesh(function, mesh)(params, gradients)
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-6 * np.max(np.abs(leaf)), err_msg=name)
    for name, value in statistics.items():
        np.testing.assert_allclose(reported[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("norm", ["l1", "l2", "max", "rms"])
@pytest.mark.parametrize("per", ["tree", "tensor", "unit", "groups"])
def test_norms_are_those_of_the_whole_gradient(per, norm, mesh):
    measure = {
        "unit": novoclip.units("flax", norm=norm, specs=SPECS),
        "groups": novoclip.groups(lambda path, _: "long" if path in ("rows", "columns") else path, norm=norm),
    }.get(per) or novoclip.resolve_measure(per, norm)
    for scale in (1.0, 1e30, 1e-30):
        gradients = jax.tree.map(lambda leaf, scale=scale: leaf * scale, tree())
        found = jax.jit(jax.shard_map(measure.norms, mesh=mesh, in_specs=(SPECS,), out_specs=P()))(gradients)
        np.testing.assert_allclose(found, measure.norms(gradients), rtol=1e-6)


def test_units_of_split_leaves_need_specs(mesh):
    rule = novoclip.agc(0.1)
    with pytest.raises(ValueError, match=r"'columns' is split over the mesh axes \['model'\].*give specs="):
        on_mesh(functools.partial(scanned, rule), mesh)(tree(), tree())
    with pytest.raises(TypeError, match="specs must be a tree of PartitionSpecs; got 'model' at 'a'"):
        novoclip.units("flax", specs={"a": "model"})
    spectral = functools.partial(scanned, novoclip.clip_by_spectral_norm(1.0))
    with pytest.raises(ValueError, match="singular values need whole matrices; 'columns' is split"):
        on_mesh(spectral, mesh)(tree(), tree())


@pytest.mark.parametrize("wrapped", [novoclip.skip_spikes, novoclip.guard_nonfinite])
def test_all_shards_agree_on_skipping(wrapped, mesh):
    guard = wrapped(optax.adam(0.1))

    def one_bad_number(params, gradients):
        bad = gradients["vector"].at[0].set(jnp.where(jax.lax.axis_index("model") == 3, jnp.nan, 1.0))
        state = guard.init(params)
        _, state = guard.update(gradients, state, params)
        updates, state = guard.update(gradients | {"vector": bad}, state, params)
        return updates, novoclip.metrics(state)

    updates, reported = on_mesh(one_bad_number, mesh)(tree(), tree(1))
    assert not any(np.any(leaf) for leaf in updates.values())
    assert 1 in [int(value) for name, value in reported.items() if name.endswith("/nonfinite")]


def test_without_the_record_gradients_count_as_the_same_everywhere(mesh):
    rule = novoclip.clip_by_global_norm(1.0)

    def replicated(params, gradients):
        state = rule.init(params)
        return gradients, {"norm": rule.update(gradients, state)[1].norms}

    whole = jax.tree.map(lambda _: P(), SPECS)
    run = jax.shard_map(replicated, mesh=mesh, in_specs=(whole, whole), out_specs=(whole, P()), check_vma=False)
    _, found = jax.jit(run)(tree(), tree())
    np.testing.assert_allclose(found["norm"], novoclip.resolve_measure("tree").norms(tree()), rtol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        novoclip.clip_by_global_norm(1.0),
        novoclip.autoclip(90.0, per="tensor"),
        novoclip.agc(0.1),
        novoclip.clip_by_value(0.1),
        novoclip.adam(0.1, clip=novoclip.zclip()),
        novoclip.skip_spikes(novoclip.adam(0.1)),
    ],
)
def test_jit_over_sharded_arrays_gathers_no_gradient(rule, mesh):
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    params, gradients = jax.device_put(tree(), shardings), jax.device_put(tree(1), shardings)
    state = rule.init(params)
    step = jax.jit(rule.update).lower(gradients, state, params).compile()
    updates, _ = step(gradients, state, params)
    expected, _ = rule.update(tree(1), rule.init(tree()), tree())
    gathered = re.findall(r"f32\[([\d,]+)\][^=]*all-gather", step.as_text())
    assert not [shape for shape in gathered if np.prod([int(n) for n in shape.split(",")]) >= 32]
    for name, leaf in updates.items():
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim), name
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-6)
