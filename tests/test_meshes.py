"""Inside shard_map every transform gives what it gives on one device; and jit over sharded arrays sends norms only."""

import functools
import re

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import novoclip
from tests import cases
from tests.cases import CASES, sampled

SPECS = {"columns": P(None, "model"), "rows": P("model", None), "vector": P(("data", "model")), "whole": P()}
STEPS = 3


@pytest.fixture(scope="module")
def mesh():
    return Mesh(mesh_utils.create_device_mesh((2, 4)), ("data", "model"))


def tree(seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"columns": (4, 8), "rows": (8, 4), "vector": (64,), "whole": (3,)}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


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


WHOLE = [
    case for case in CASES if case.entry.place not in ("examples", "shards") and "singular value" not in case.entry.per
]

# Options and aliases change little of where a transform runs: they are left to -m full.
FIRST = [case for case in cases.FIRST if case in WHOLE]
OTHERS = [case for case in WHOLE if all(case is not first for first in FIRST)]


def given():
    """Parameters and gradients."""
    return jax.tree.map(lambda leaf: 1 + 0.5 * leaf, tree()), tree(1)


@functools.cache
def on_one_device(name):
    """What the case of that name makes of whole leaves: updates and statistics."""
    (transform,) = (case.transform() for case in WHOLE if case.name == name)
    return jax.device_get(jax.jit(functools.partial(scanned, transform))(*given()))


@pytest.mark.parametrize(
    "case",
    [*sampled(FIRST), *(pytest.param(case, id=case.name, marks=pytest.mark.full) for case in OTHERS)],
)
def test_sharded_leaves_give_what_whole_ones_give(case, mesh):
    expected, statistics = on_one_device(case.name)
    found, reported = on_mesh(functools.partial(scanned, split(case)), mesh)(*given())
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-6 * np.max(np.abs(leaf)), err_msg=name)
    for name, value in statistics.items():
        np.testing.assert_allclose(reported[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "case", sampled(FIRST, ("clip_by_norm", "clip_by_value", "clippy", "agc", "adam", "skip_spikes"))
)
def test_sharded_leaves_of_16_bits_give_what_whole_ones_give(case, mesh):
    given_here = [jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), each) for each in given()]
    expected, _ = jax.jit(functools.partial(scanned, case.transform()))(*given_here)
    found, _ = on_mesh(functools.partial(scanned, split(case)), mesh)(*given_here)
    for name, leaf in expected.items():
        assert found[name].dtype == leaf.dtype
        right, got = (np.asarray(x, np.float32) for x in (leaf, found[name]))
        np.testing.assert_allclose(got, right, rtol=2**-7, atol=1e-6 * np.max(np.abs(right)), err_msg=name)


@pytest.mark.parametrize("norm", ["l1", "l2", "max", "rms"])
@pytest.mark.parametrize("per", ["tree", "tensor", "unit", "groups"])
def test_norms_are_those_of_the_whole_gradient(per, norm, mesh):
    measure = {
        "unit": novoclip.units("flax", norm=norm, specs=SPECS),
        "groups": novoclip.groups(lambda path, _: "long" if path in ("rows", "columns") else path, norm=norm),
    }.get(per) or novoclip.resolve_measure(per, norm)
    on_shards = jax.jit(jax.shard_map(measure.norms, mesh=mesh, in_specs=(SPECS,), out_specs=P()))
    alone = jax.jit(measure.norms)
    for scale in (1.0, 1e30, 1e-30):
        gradients = jax.tree.map(lambda leaf, scale=scale: leaf * np.float32(scale), tree())
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), on_shards(gradients), alone(gradients))


def test_units_of_split_leaves_need_specs(mesh):
    rule = novoclip.agc(0.1)
    with pytest.raises(ValueError, match=r"'columns' is sharded over the mesh axes \['model'\].*pass specs="):
        on_mesh(functools.partial(scanned, rule), mesh)(tree(), tree())
    with pytest.raises(TypeError, match="specs must be a pytree of PartitionSpecs; got 'model' at 'a'"):
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


def norm_of(gradients):
    """The global norm in NumPy."""
    return np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in gradients.values()))


def test_without_the_record_gradients_count_as_the_same_everywhere(mesh):
    rule = novoclip.clip_by_global_norm(1.0)

    def replicated(params, gradients):
        state = rule.init(params)
        return gradients, {"norm": rule.update(gradients, state)[1].norms}

    whole = jax.tree.map(lambda _: P(), SPECS)
    run = jax.shard_map(replicated, mesh=mesh, in_specs=(whole, whole), out_specs=(whole, P()), check_vma=False)
    _, found = jax.jit(run)(tree(), tree())
    np.testing.assert_allclose(found["norm"], norm_of(tree()), rtol=1e-6)


def told(rule):
    """The rule, told what shard_map does not record with check_vma=False."""
    rule = novoclip.across_shards(rule, axis_name="model", sharded=lambda path, _: path != "whole")
    return novoclip.across_shards(
        rule, axis_name="data", sharded={"columns": False, "rows": False, "vector": True, "whole": False}
    )


@pytest.mark.parametrize("case", sampled(FIRST, cases.SEVERAL))
def test_shards_of_which_nothing_is_recorded_give_what_whole_leaves_give(case, mesh):
    expected, statistics = on_one_device(case.name)
    unrecorded = on_mesh(functools.partial(scanned, told(split(case))), mesh, check_vma=False)
    found, reported = unrecorded(*given())
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-6 * np.max(np.abs(leaf)), err_msg=name)
    for name, value in statistics.items():
        np.testing.assert_allclose(reported[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(("told_so", "norm"), [(True, np.sqrt(8 * 4 + 1)), (False, np.sqrt(4 + 1))])
def test_pmap_takes_leaves_as_the_same_everywhere_unless_told(told_so, norm):
    rule = novoclip.clip_by_global_norm(1.0)
    if told_so:
        rule = novoclip.across_shards(rule, axis_name="devices", sharded={"split": True, "copied": False})
    gradients = {"split": np.full((8, 1), 2.0, np.float32), "copied": np.ones((8, 1), np.float32)}
    state = jax.pmap(rule.init, axis_name="devices")(gradients)
    updates, state = jax.pmap(rule.update, axis_name="devices")(gradients, state)
    np.testing.assert_allclose(state.norms, np.full(8, norm), rtol=1e-6)
    np.testing.assert_allclose(updates["split"], np.full((8, 1), 2 / norm), rtol=1e-6)
    of_one_device = jax.tree.map(lambda leaf: leaf[0], jax.device_get(state))
    np.testing.assert_allclose(novoclip.metrics(of_one_device)["clip/norm"], norm, rtol=1e-6)


def test_what_is_said_is_asked_anew_at_every_call(mesh):
    blocks = novoclip.units(0, specs={"w": P(None, "model"), "other": P("model")})
    for make in (novoclip.clip_by_norm, novoclip.scale_by_novograd):
        rule = make(1.0, per=blocks) if make is novoclip.clip_by_norm else make(per=blocks)
        for sharded in (False, True, False):

            def norms(gradients, rule=rule, sharded=sharded):
                # Without a leaf that is sharded there would be nothing to say.
                gradients = {"w": gradients, "other": jnp.ones(1)}
                said = {"w": sharded, "other": True}
                told_rule = novoclip.across_shards(rule, axis_name="model", sharded=said)
                _, state = told_rule.update(gradients, told_rule.init(gradients))
                return jax.tree.leaves(state)[-1]

            found = jax.shard_map(norms, mesh=mesh, in_specs=P(None, "model"), out_specs=P(), check_vma=False)
            jax.eval_shape(found, jnp.ones((2, 12)))


def test_with_the_record_nothing_said_counts_twice(mesh):
    rule, gradients = novoclip.clip_by_global_norm(1.0), tree()
    for axis in ("model", "data"):
        rule = novoclip.across_shards(rule, axis_name=axis, sharded=True)
    _, reported = on_mesh(functools.partial(scanned, rule), mesh)(gradients, gradients)
    np.testing.assert_allclose(reported["clip/norm"], STEPS * norm_of(gradients), rtol=1e-6)


def test_across_shards_names_what_is_wrong():
    rule = novoclip.clip_by_global_norm(1.0)
    across = functools.partial(novoclip.across_shards, rule)
    with pytest.raises(TypeError, match="axis_name must be the name of a mapped axis, or several; got 3"):
        across(axis_name=3, sharded=True)
    with pytest.raises(TypeError, match=r"axis_name must be .*; got \(\)"):
        across(axis_name=(), sharded=True)
    with pytest.raises(TypeError, match=r"sharded must be True or False for each leaf; got 1 for 'a'"):
        jax.vmap(across(axis_name="i", sharded={"a": 1}).init, axis_name="i")({"a": jnp.ones((2, 3))})
    for wrong, message in (
        ({"b": True}, "sharded has no entry for 'a'; its entries are for 'b'"),
        (None, "sharded has no entry for 'a'; its entries are for no leaf"),
        (lambda path, _: path == "b", "sharded is True for no leaf, of 'a'"),
    ):
        shards = across(axis_name="i", sharded=wrong)
        with pytest.raises(ValueError, match=message):
            jax.vmap(lambda g, shards=shards: shards.update(g, shards.init(g)), axis_name="i")({"a": jnp.ones((2, 3))})
    typo = across(axis_name="device", sharded=True)
    with pytest.raises(ValueError, match="axis_name='device' is not mapped here: call update inside"):
        jax.pmap(lambda g: typo.update(g, typo.init(g)), axis_name="devices")(jnp.ones((8, 2)))


COLLECTIVES = (
    "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|ragged-all-to-all|reduce-scatter"
)


def moved(compiled):
    """What a program sends between devices: the kinds of collectives, each with the sizes of its results."""
    found = set()
    for line in compiled.as_text().splitlines():
        if call := re.search(rf"= (.*?) ({COLLECTIVES})(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", call[1])
            found |= {(call[2], int(np.prod([int(n) for n in shape.split(",") if n]))) for shape in shapes}
    return found


# The sum of one norm, or of one mean, is all that a rule sends. By output unit there is one for each of the four of
# "rows", which lie on several devices.
SUMS = {("all-reduce", 1)}
OF_UNITS = {name: {("all-reduce", 4)} for name in ("agc", "adaptive_grad_clip", "centralize")}


def test_what_moves_is_seen(mesh):
    split, whole = NamedSharding(mesh, P("data", "model")), NamedSharding(mesh, P())
    leaf = jax.device_put(np.ones((4, 8), np.float32), split)
    for place, found in ((split, set()), (whole, {("all-gather", 32)})):
        kinds = moved(jax.jit(lambda x: x + 1, out_shardings=place).lower(leaf).compile())
        assert {kind for kind, _ in kinds} == {kind for kind, _ in found}
        assert max((size for _, size in kinds), default=0) == max((size for _, size in found), default=0)


@pytest.mark.parametrize("case", sampled(FIRST, cases.SEVERAL))
def test_explicit_axis_types_give_what_whole_leaves_give_and_gather_nothing(case, mesh):
    expected, _ = on_one_device(case.name)
    function = jax.jit(functools.partial(scanned, case.transform()))
    explicit = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Explicit,) * 2)
    shardings = {name: NamedSharding(explicit, spec) for name, spec in SPECS.items()}
    with jax.set_mesh(explicit):
        placed = jax.device_put(given(), (shardings, shardings))
        step = function.lower(*placed).compile()
        found, _ = step(*placed)
    assert moved(step) - SUMS == OF_UNITS.get(case.entry.name, set())
    for name, leaf in expected.items():
        assert found[name].sharding.is_equivalent_to(shardings[name], leaf.ndim), name
        np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-6 * np.max(np.abs(leaf)), err_msg=name)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_state_made_of_sharded_parameters_is_split_as_they_are(kind, mesh):
    typed = Mesh(mesh.devices, mesh.axis_names, axis_types=(kind,) * 2)
    params = jax.device_put(tree(), {name: NamedSharding(typed, spec) for name, spec in SPECS.items()})
    places = {leaf.shape: leaf.sharding for leaf in params.values()}
    seen = 0
    for case in FIRST:
        for leaf in jax.tree.leaves(case.transform().init(params)):
            if leaf.shape in places:
                seen += 1
                assert leaf.sharding.is_equivalent_to(places[leaf.shape], leaf.ndim), case.name
    assert seen > 100


@pytest.mark.parametrize(
    ("rule", "largest"),
    [
        (novoclip.clip_by_global_norm(1.0), 1),
        (novoclip.autoclip(90.0, per="tensor"), 1),
        (novoclip.agc(0.1), 4),
        (novoclip.clip_by_value(0.1), 1),
        (novoclip.adam(0.1, clip=novoclip.zclip()), 1),
        (novoclip.skip_spikes(novoclip.adam(0.1)), 1),
    ],
)
def test_jit_over_sharded_arrays_gathers_no_gradient(rule, largest, mesh):
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    params, gradients = jax.device_put(tree(), shardings), jax.device_put(tree(1), shardings)
    state = rule.init(params)
    step = jax.jit(rule.update).lower(gradients, state, params).compile()
    updates, _ = step(gradients, state, params)
    expected, _ = jax.jit(lambda params, gradients: rule.update(gradients, rule.init(params), params))(tree(), tree(1))
    # By unit, the four norms of "rows".
    assert moved(step) <= SUMS if largest == 1 else max(size for _, size in moved(step)) <= largest
    for name, leaf in updates.items():
        assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim), name
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-5, atol=1e-6)
