"""Float32 weights in the state: updates arrive bit for bit, and the run is that of float32 weights."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import novoclip
from novoclip.origin import made_by
from novoclip.precision.master_weights import master_weights, weights_of
from novoclip.precision.narrow import update_to
from novoclip.precision.remainders import joined, split
from tests.programs import SUMS_IN_ONE_DTYPE
from tests.steps import compiled

BF16 = ml_dtypes.bfloat16
KINDS = (None, "int16", "int8")


def every(dtype):
    """All finite numbers of the dtype; float32 arithmetic on this device reads subnormal bfloat16 as zero."""
    bits, infinity = np.arange(2**16, dtype=np.uint16), np.array(np.inf, dtype).view(np.uint16)
    return bits[(bits & infinity) != infinity].view(dtype)


def flushed(numbers):
    wide = np.asarray(numbers).astype(np.float64)
    return np.where(np.abs(wide) < 2.0**-126, 0.0, wide)


@pytest.mark.parametrize("dtype", [BF16, np.float16])
def test_updates_to_a_target_arrive_bit_for_bit(dtype):
    """A float32 update can give any target that is not far below the parameter."""
    numbers, random = every(dtype), np.random.default_rng(0)
    params = random.choice(numbers, 10**6)
    targets = random.choice(numbers, 10**6)
    # Half of the pairs are near each other, as in training.
    steps = random.integers(-300, 300, 10**6)
    near = np.clip(params.view(np.uint16).astype(int) + steps, 0, 2**16 - 1).astype(np.uint16).view(dtype)
    targets = np.where(
        (np.arange(10**6) % 2 == 0) & np.isin(near.view(np.uint16), numbers.view(np.uint16)), near, targets
    )
    updates, reached = jax.jit(update_to)(jnp.asarray(targets), jnp.asarray(params))
    sums = np.asarray(jax.jit(optax.apply_updates)(jnp.asarray(params), updates))
    assert np.array_equal(sums.view(np.uint16), np.asarray(reached).view(np.uint16))
    assert np.array_equal(sums, np.asarray(optax.apply_updates(jnp.asarray(params), updates)))
    p, t = flushed(params), flushed(targets)
    reachable = (t == 0) | (np.abs(t) >= np.abs(p) * (2.0**-15 if dtype == BF16 else 2.0**-12))
    reachable &= (np.abs(t - p) < 3.4e38) & ((np.abs(t - p) >= 2.0**-126) | (t == p))  # no subnormal difference
    assert np.mean(reachable) > 0.5
    arrived = flushed(sums)
    np.testing.assert_array_equal(arrived[reachable], t[reachable])
    lost = ~reachable & (np.abs(t - p) < 3.4e38)
    assert np.all(np.abs(arrived - t)[lost] <= np.maximum(np.abs(p)[lost] * 2.0**-24, 2.0**-126))
    nonzero = reachable & (t != 0)
    np.testing.assert_array_equal(sums.view(np.uint16)[nonzero], targets.view(np.uint16)[nonzero])


def test_a_zero_update_changes_no_bit():
    for dtype in (BF16, np.float16):
        numbers = every(dtype)
        normal = numbers[(np.abs(numbers.astype(np.float64)) >= 2.0**-126) | (numbers == 0)]
        updates, _ = jax.jit(update_to)(normal, normal)
        sums = np.asarray(jax.jit(optax.apply_updates)(normal, updates))
        np.testing.assert_array_equal(sums.view(np.uint16), normal.view(np.uint16))


def random_float32(size=10**6):
    """Floats of every exponent and sign, ties and all."""
    bits = np.random.default_rng(1).integers(0, 2**32, size, np.uint32)
    bits[: size // 8] = bits[: size // 8] & 0xFFFF0000 | 0x8000  # ties
    bits[size // 8 : size // 4] = bits[size // 8 : size // 4] & 0xFFFF0000  # bfloat16 numbers
    return bits[(bits & 0x7FFFFFFF) < 0x7F7F0000].view(np.float32)  # without those that round to infinity


def test_a_bfloat16_and_an_int16_are_exactly_the_float32():
    wide = random_float32()
    param, remainder = jax.jit(functools.partial(split, dtype=jnp.int16))(jnp.asarray(wide))
    back = np.asarray(jax.jit(joined)(param, remainder))
    np.testing.assert_array_equal(back.view(np.uint32), wide.view(np.uint32))
    ties = (wide.view(np.uint32) & 0xFFFF) == 0x8000
    expected = wide.astype(BF16)
    np.testing.assert_array_equal(np.asarray(param).view(np.uint16)[~ties], expected.view(np.uint16)[~ties])
    assert np.all(np.abs(np.asarray(param).astype(np.float64)[ties]) > np.abs(wide[ties].astype(np.float64)))


def test_a_bfloat16_and_an_int8_are_the_float32_of_16_bits():
    wide = random_float32()
    wide = wide[np.abs(wide) > 1e-37]
    param, remainder = jax.jit(functools.partial(split, dtype=jnp.int8))(wide)
    back = np.asarray(jax.jit(joined)(param, remainder)).astype(np.float64)
    error = np.abs(back - wide.astype(np.float64)) / np.abs(wide.astype(np.float64))
    assert 2.0**-17.1 < error.max() <= 2.0**-16
    spacing = 2.0 ** (np.floor(np.log2(np.abs(wide.astype(np.float64)))) - 15)
    assert np.max(np.abs(back - wide) / spacing) <= 0.5
    assert np.max(np.abs(np.asarray(param).astype(np.float64) - back) / spacing) <= 128


def test_no_remainder_of_another_parameter_makes_a_nan():
    for dtype in (jnp.int16, jnp.int8):
        info = jnp.iinfo(dtype)
        special = np.array([np.inf, -np.inf, np.nan], BF16)
        params = np.concatenate([every(BF16), special])
        remainders = np.array([[info.min], [-1], [0], [1], [info.max]], dtype)
        found = np.asarray(jax.jit(jax.vmap(joined, (None, 0)))(params, np.repeat(remainders, params.size, 1)))
        found, of_special = np.split(found, [-3], 1)
        given = params[:-3].astype(np.float64)
        largest = np.abs(given) > 3.38e38
        assert not np.any(np.isnan(found))
        spacing = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(given), 2.0**-126))) - 7)
        assert np.all((np.abs(found - given) <= 0.5 * spacing)[:, ~largest])
        np.testing.assert_array_equal(of_special, [[np.inf, -np.inf, np.nan]] * 5)
        halves = jax.jit(functools.partial(split, dtype=dtype))(special.astype(np.float32))
        np.testing.assert_array_equal(np.asarray(halves[0], np.float32), [np.inf, -np.inf, np.nan])


def params_of(dtype=jnp.bfloat16):
    random = np.random.default_rng(2)
    return {
        "w": jnp.asarray(random.normal(size=(64, 512)).astype(jnp.dtype(dtype))),
        "b": jnp.asarray(random.normal(size=(8,)).astype(jnp.dtype(dtype))),
        "norm": jnp.asarray(np.ones(4, np.float32)),
    }


def gradients_at(step, params):
    return jax.tree.map(lambda p: jnp.sin(7 * p.astype(jnp.float32) + step).astype(p.dtype), params)


def trained(optimizer, params, steps=40):
    """The last parameters and the last state."""

    def step(carry, i):
        params, state = carry
        updates, state = optimizer.update(gradients_at(i, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    numbers = np.arange(steps, dtype=np.float32)
    return jax.jit(lambda params: lax.scan(step, (params, optimizer.init(params)), numbers)[0])(params)


def oracle(tx, params, steps=40):
    """Float32 weights kept outside, rounded by ml_dtypes for each gradient."""
    dtypes = jax.tree.map(jnp.result_type, params)
    weights = jax.tree.map(lambda p: jnp.asarray(np.asarray(p, np.float32)), params)
    state = jax.jit(tx.init)(weights)

    @jax.jit
    def step(i, rounded, weights, state):
        gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients_at(i, rounded))
        updates, state = tx.update(gradients, state, weights)
        return jax.lax.optimization_barrier(updates), state

    for i in range(steps):
        updates, state = step(jnp.float32(i), params, weights, state)
        weights = jax.tree.map(lambda w, u: jnp.asarray(np.asarray(w) + np.asarray(u)), weights, updates)
        params = jax.tree.map(lambda w, d: jnp.asarray(np.asarray(w).astype(d)), weights, dtypes)
    return params, weights


@pytest.mark.parametrize(("remainder", "dtype"), [(None, "bfloat16"), (None, "float16"), ("int16", "bfloat16")])
def test_the_run_is_that_of_float32_weights_kept_outside(remainder, dtype):
    tx = optax.chain(novoclip.clip_by_global_norm(50.0), optax.adamw(1e-3))
    found, state = trained(master_weights(tx, remainder=remainder), params_of(dtype))
    expected, weights = oracle(tx, params_of(dtype))
    for key, p in params_of(dtype).items():
        assert found[key].dtype == p.dtype
        same = np.asarray(found[key]) == np.asarray(expected[key])
        assert np.mean(same) > 0.99  # adamw's compiled steps differ in the last place
    kept = jax.jit(weights_of)(state, found)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), kept, weights)
    stored = {None: jnp.float32, "int16": jnp.int16}[remainder]
    assert state.weights["w"].dtype == stored
    assert state.weights["norm"] is None
    # Parameters are exactly the rounded weights.
    if remainder is None:
        np.testing.assert_array_equal(np.asarray(kept["w"]).astype(dtype), found["w"])
    if dtype == "bfloat16":
        plain = trained(tx, params_of(dtype))[0]
        distance = [np.abs(wide(tree["w"]) - wide(weights["w"])).mean() for tree in (plain, kept)]
        assert distance[1] < 0.05 * distance[0]


def test_weights_are_numpys_float32_sums_bit_for_bit():
    """Also in compiled programs, where a fused multiply and add would round otherwise."""
    random, start = np.random.default_rng(5), params_of()["w"]
    for kind in KINDS:
        optimizer = master_weights(optax.sgd(1e-3), remainder=kind)
        step = jax.jit(optimizer.update)
        params, state, expected = start, optimizer.init(start), np.asarray(start, np.float32)
        for gradient in np.split(random.normal(size=(8 * 64, 512)).astype(np.float32), 8):
            updates, state = step(jnp.asarray(gradient), state, params)
            params = jax.jit(optax.apply_updates)(params, updates)
            expected = expected + np.float32(-1e-3) * gradient
            weights = np.asarray(jax.jit(weights_of)(state, params))
            if kind == "int8":
                assert np.max(np.abs(weights - expected)) < 8 * 4 * 2.0**-16
                assert not np.array_equal(weights, expected)
                continue
            np.testing.assert_array_equal(weights, expected)
            ties = (expected.view(np.uint32) & 0xFFFF) == 0x8000
            kept = np.asarray(params)
            np.testing.assert_array_equal(kept[~ties], expected.astype(BF16)[~ties])


def test_small_updates_sum_up():
    def weights_after_200_steps(remainder):
        optimizer = master_weights(optax.sgd(1e-4), remainder=remainder)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jnp.ones(3, jnp.bfloat16), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.ones(3, jnp.bfloat16)
        params, state = lax.scan(step, (start, optimizer.init(start)), length=200)[0]
        return weights_of(state, params)

    found = jax.jit(lambda: [weights_after_200_steps(kind) for kind in KINDS])()
    for kind, weights in zip(KINDS, found, strict=True):
        rtol = 2e-5 if kind != "int8" else 200 * 2.0**-17
        np.testing.assert_allclose(weights, 0.98, rtol=rtol)


def test_changed_parameters_replace_the_weights_or_keep_the_remainder():
    params = np.array([1.0, -2.0, 0.5], BF16)
    for kind in KINDS:
        optimizer = compiled(master_weights(optax.sgd(1.0), remainder=kind))
        updates, state = optimizer.update(np.full(3, 1e-3, np.float32), optimizer.init(params), params)
        changed = np.array(optax.apply_updates(params, updates))
        changed[:2] = 4.0, 0.0
        kept = np.asarray(jax.jit(weights_of)(state, changed))
        assert abs(kept[2] - 0.499) < 1e-6 * (1 if kind != "int8" else 20)  # was not changed
        assert abs(kept[0] - 4.0) <= 0.5 * 2.0**-5
        if kind is None:
            np.testing.assert_array_equal(kept[:2], [4.0, 0.0])
        assert abs(kept[1]) < 1e-40
        updates, _ = optimizer.update(np.zeros(3, np.float32), state, changed)
        np.testing.assert_array_equal(optax.apply_updates(changed, updates), changed)


def test_a_weight_that_falls_further_than_float32_reaches_is_what_arrives():
    for kind in KINDS:
        optimizer = compiled(master_weights(optax.sgd(1.0), remainder=kind))
        params = np.ones(2, BF16)
        target = np.array([1e-12, 2.0**-30])
        state = optimizer.init(params)
        for gradient in (np.float32([0.5, 0.5]), np.float32(0.5) - np.float32(target)):
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(jax.jit(weights_of)(state, params), params, rtol=2.0**-8)
        assert np.all(np.abs(np.asarray(params, np.float64) - target) <= 2.0**-24)


@pytest.mark.parametrize("kind", [None, "int8"])
def test_state_passes_through_everything(kind, tmp_path):
    optimizer = master_weights(optax.chain(novoclip.clip_by_norm(1.0), optax.adam(1e-2)), remainder=kind)
    params = params_of()
    state = optimizer.init(params)
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.size]
    assert len({leaf.unsafe_buffer_pointer() for leaf in arrays}) == len(arrays)
    expected, last = trained(optimizer, params, 4)

    # Donated.
    @functools.partial(jax.jit, donate_argnums=1)
    def step(i, state, params):
        updates, state = optimizer.update(gradients_at(i, params), state, params)
        return optax.apply_updates(params, updates), state

    new = params
    for i in range(4):
        new, state = step(np.float32(i), state, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(wide(a), wide(b), rtol=2**-7), new, expected)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state) == jax.tree.structure(last)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    # Two at once.
    stack = jax.tree.map(lambda leaf: np.stack([leaf, np.asarray(leaf) + 1]), params)
    first = lambda params: optimizer.update(params, optimizer.init(params), params)[0]  # noqa: E731
    mapped, single = jax.jit(lambda stack, params: (jax.vmap(first)(stack), first(params)))(stack, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(wide(a)[0], wide(b), atol=1e-2), mapped, single)
    # On a mesh.
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = params | {"w": jax.device_put(params["w"], NamedSharding(mesh, PartitionSpec(None, "x")))}
    assert optimizer.init(spread).weights["w"].sharding.is_equivalent_to(spread["w"].sharding, 2)
    found, sharded = trained(optimizer, spread, 4)
    assert sharded.weights["w"].sharding.is_equivalent_to(spread["w"].sharding, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(wide(a), wide(b), rtol=2**-7), found, expected)


def wide(array):
    return np.asarray(array, np.float64)


@SUMS_IN_ONE_DTYPE
@pytest.mark.parametrize("kind", [None, "int16"])
def test_inside_and_around_multi_steps(kind):
    inside = master_weights(optax.MultiSteps(optax.sgd(1e-4), 2).gradient_transformation(), remainder=kind)
    around = optax.MultiSteps(master_weights(optax.sgd(1e-4), remainder=kind), 2).gradient_transformation()
    for optimizer in (inside, around):

        def step(carry, _, optimizer=optimizer):
            params, state = carry
            updates, state = optimizer.update(jnp.ones_like(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.array([1.0, -0.0, 0.0], jnp.bfloat16)
        run = jax.jit(lambda carry, step=step: lax.scan(step, carry, length=400)[0])
        params, _ = run((start, optimizer.init(start)))
        np.testing.assert_allclose(wide(params), [0.98, -0.02, -0.02], rtol=2**-7)


def test_in_shard_map_weights_are_those_of_the_shards():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    optimizer = master_weights(optax.sgd(1e-3), remainder="int16")

    def step(params):
        state = optimizer.init(params)
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
        return params, weights_of(state, params)

    spec = {"w": PartitionSpec("x"), "b": PartitionSpec(), "norm": PartitionSpec()}
    found = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(spec,), out_specs=(spec, spec)))(params_of())
    expected = jax.jit(step)(params_of())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(wide(a), wide(b), rtol=1e-6), found, expected)


def test_other_leaves_pass():
    params = {"w": jnp.ones(2, jnp.bfloat16), "i": jnp.arange(3), "none": None, "frozen": jnp.ones(2, jnp.bfloat16)}
    params["masked"] = optax.MaskedNode()
    gradients = params | {"i": np.zeros(3, jax.dtypes.float0), "frozen": None}
    tx = optax.stateless(lambda g, p: g | {"w": -0.25 * g["w"]})
    for kind in KINDS:
        optimizer = master_weights(tx, remainder=kind)
        updates, state = optimizer.update(gradients, optimizer.init(params), params)
        np.testing.assert_array_equal(updates["w"], -0.25)
        assert updates["none"] is updates["frozen"] is None
        assert updates["i"].dtype == jax.dtypes.float0
        assert state.weights["i"] is None
    masked = optax.masked(master_weights(optax.sgd(0.25)), {"a": True, "b": False})
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
    updates, _ = masked.update(params, masked.init(params), params)
    np.testing.assert_array_equal(updates["a"], -0.25)


def test_it_holds_under_strict_promotion():
    optimizers = [master_weights(optax.identity(), remainder=kind) for kind in KINDS]
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        first = jax.jit(lambda params: [each.update(params, each.init(params), params)[0] for each in optimizers])
        for updates in first(np.ones(2, BF16)):
            np.testing.assert_array_equal(updates, 1.0)


def test_what_is_wrong_is_said():
    params = jnp.ones(2, jnp.bfloat16)
    optimizer = master_weights(optax.sgd(0.1))
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update(params, state)
    with pytest.raises(ValueError, match="needs a state of type MasterWeightsState; got tuple"):
        optimizer.update(params, (), params)
    with pytest.raises(ValueError, match="needs a state of type MasterWeightsState; got tuple"):
        weights_of((), params)
    with pytest.raises(ValueError, match="was made by other, and not by master_weights"):
        optimizer.update(params, state._replace(origin=made_by("other")), params)
    with pytest.raises(ValueError, match=r"made by master_weights\(remainder=None\), and not .*'int16'"):
        master_weights(optax.sgd(0.1), remainder="int16").update(params, state, params)
    with pytest.raises(ValueError, match=r"keeps weights of shape \(2,\) for a parameter of shape \(3,\)"):
        optimizer.update(jnp.ones(3), state, jnp.ones(3, jnp.bfloat16))
    with pytest.raises(ValueError, match="remainder must be one of 'int16', 'int8'; got 'int4'"):
        master_weights(optax.sgd(0.1), remainder="int4")
    with pytest.raises(TypeError, match="needs parameters of bfloat16; 'w' has float16"):
        master_weights(optax.sgd(0.1), remainder="int8").init({"w": jnp.ones(2, jnp.float16)})
    with pytest.raises(TypeError, match="inner must be a GradientTransformation"):
        master_weights(0.1)
