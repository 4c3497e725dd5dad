"""The usual ways to shard a train state, with the whole catalog in it at once, on eight devices."""

from flax import linen, nnx
from flax.training.train_state import TrainState
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import novoclip
from tests.cases import CASES

SPECS = {"kernel": P("data", "model"), "bias": P("model")}
SHAPES = {"kernel": (8, 16), "bias": (16,)}
# Of float32 parameters `master_weights` keeps nothing, and so has None where the others have arrays.
RULES = {case.name: case.transform() for case in CASES if case.entry.name != "master_weights"}


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


# One behind the other: of many reductions at once, on eight devices that share two cores, some wait for ever.
CHAIN = optax.chain(
    novoclip.autoclip(50.0, window=4), novoclip.agc(0.1), novoclip.zclip(per="tensor"), novoclip.adam(0.1)
)


def side_by_side(rules):
    """One transform whose state has that of every rule under its name; it is not run."""
    return optax.GradientTransformation(lambda params: {name: rule.init(params) for name, rule in rules.items()}, None)


ALL = side_by_side(RULES)


def of_parameters(leaf):
    return {shape: name for name, shape in SHAPES.items()}.get(leaf.shape)


def check_split(state, mesh):
    """That what has a parameter's shape is split as it is, and everything else is whole on every device."""
    seen = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = of_parameters(leaf)
        expected = NamedSharding(mesh, SPECS[name] if name else P())
        assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), (jax.tree_util.keystr(path), leaf.sharding)
        seen.append(name)
    return seen


def test_tree_map_params_and_device_put(mesh):
    generator = np.random.default_rng(0)
    params, gradients = (
        {name: jnp.asarray(generator.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()} for _ in "12"
    )
    place = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}

    def keep(leaf):
        return jax.device_put(leaf, NamedSharding(mesh, P()))

    def placed(rule):
        return optax.tree_map_params(rule, jax.device_put, rule.init(params), place, transform_non_params=keep)

    assert {"kernel", "bias", None} == set(check_split(placed(ALL), mesh))
    expected = jax.jit(CHAIN.update)(gradients, CHAIN.init(params), params)
    found = jax.jit(CHAIN.update)(*jax.device_put((gradients,), (place,)), placed(CHAIN), jax.device_put(params, place))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), found, expected)


MASK = {"kernel": True, "bias": False}


@pytest.mark.parametrize("mask", [MASK, lambda tree: {name: MASK[name] for name in tree}], ids=["pytree", "function"])
def test_tree_map_params_with_masks_of_the_parameters(mask):
    """`init` gets a placeholder there, as that of `optax.masked` does."""
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    adam = novoclip.adamw(0.1, mask=mask, clip=novoclip.agc({"bias": None, "*": 0.1}))
    state = optax.tree_map_params(adam, lambda leaf: leaf + 5, adam.init(params))
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 5), [state.moments.mu, state.moments.root])
    assert state.clip == adam.init(params).clip
    rule = novoclip.clip_by_second_moment(3.0, mask=mask)
    rule_state = optax.tree_map_params(rule, lambda leaf: leaf + 5, rule.init(params))
    np.testing.assert_array_equal(rule_state.limit_state.root["kernel"], 5)


def test_a_history_per_element_is_split_but_for_its_window(mesh):
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    rule = novoclip.autoclip(90.0, window=5, per="element")
    place = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    state = optax.tree_map_params(rule, jax.device_put, rule.init(params), place)
    expected = NamedSharding(mesh, P("data", "model", None))
    assert state.limit_state.history["kernel"].sharding.is_equivalent_to(expected, 3)
    updates, after = jax.jit(rule.update)(jax.device_put(params, place), state)
    assert after.limit_state.history["kernel"].sharding.is_equivalent_to(expected, 3)
    jax.tree.map(np.testing.assert_array_equal, updates, params)


def partitioned(initializer, *names):
    return linen.with_partitioning(initializer, names)


def test_a_linen_train_state_by_its_partition_spec(mesh):
    normal = linen.initializers.normal(1.0)
    model = linen.Dense(16, kernel_init=partitioned(normal, "data", "model"), bias_init=partitioned(normal, "model"))
    x = jnp.ones((4, 8))

    def create(rule):
        return TrainState.create(apply_fn=model.apply, params=model.init(jax.random.key(0), x)["params"], tx=rule)

    def sharded(rule):
        specs = linen.get_partition_spec(jax.eval_shape(lambda: create(rule)))
        places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda spec: isinstance(spec, P))
        return jax.jit(lambda: create(rule), out_shardings=places)(), places

    state, _ = sharded(ALL)
    assert {"kernel", "bias", None} == set(check_split((state.params, state.opt_state), mesh))

    def step(state):
        gradients = jax.grad(lambda params: jnp.sum(model.apply({"params": params}, x) ** 2))(state.params)
        return state.apply_gradients(grads=gradients)

    before, places = sharded(CHAIN)
    after = jax.jit(step, out_shardings=places)(before)
    check_split((after.params, after.opt_state), mesh)
    expected = jax.jit(step)(jax.device_put(before, jax.devices()[0]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), after.params, expected.params)


@pytest.mark.parametrize("constrained", [False, True])
def test_an_nnx_optimizer_of_sharded_variables(mesh, constrained):
    def create(rule):
        normal = nnx.initializers.normal(1.0)
        model = nnx.Linear(
            8,
            16,
            kernel_init=nnx.with_partitioning(normal, ("data", "model")),
            bias_init=nnx.with_partitioning(normal, ("model",)),
            rngs=nnx.Rngs(0),
        )
        optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
        if constrained:
            state = nnx.state((model, optimizer))
            specs = nnx.get_partition_spec(state)
            nnx.update((model, optimizer), jax.lax.with_sharding_constraint(state, specs))
        return model, optimizer

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.sum(model(jnp.ones((4, 8))) ** 2))(model)
        optimizer.update(model, gradients)

    with jax.set_mesh(mesh):
        _, everything = nnx.jit(create, static_argnums=0)(ALL)
        model, optimizer = nnx.jit(create, static_argnums=0)(CHAIN)
        step(model, optimizer)
        jax.block_until_ready(nnx.state((model, optimizer)))
    for state, least in ((nnx.state(everything), 20), (nnx.state(optimizer), 2)):
        seen = [leaf for leaf in jax.tree.leaves(state) if of_parameters(leaf) == "kernel"]
        assert len(seen) >= least
        for leaf in seen:
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, SPECS["kernel"]), 2)
    assert int(optimizer.step[...]) == 1
