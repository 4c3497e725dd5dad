"""The scale follows the rule of torch's GradScaler, skipped steps leave no trace, and limits see unscaled gradients."""

import functools

from flax.training.dynamic_scale import DynamicScale
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import novoclip
from novoclip.origin import made_by
from novoclip.precision.loss_scale import loss_scaling, scale_of
from novoclip.precision.master_weights import master_weights
from novoclip.precision.stochastic import stochastic_rounding
from tests.steps import compiled

OPTIONS = {"growth_interval": 3, "min_scale": 2.0, "max_scale": 64.0}
# Which steps overflow: some in a row down to the smallest scale, then enough good ones up to the largest.
BAD = [0, 0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, *[0] * 20, 1, 0, 0, 0, 0]


def oracle(bad, scale, interval, growth=2.0, backoff=0.5, low=2.0, high=64.0):
    """The scale after each step, as the update of torch's GradScaler has it, with bounds."""
    good, scales = 0, []
    for each in bad:
        if each:
            scale, good = max(scale * backoff, low), 0
        else:
            good += 1
            if good == interval:
                scale, good = min(scale * growth, high), 0
        scales.append(scale)
    return scales


def params():
    return {"w": jnp.asarray(np.ones((8, 16), np.float32)), "b": jnp.asarray(np.zeros(3, np.float32))}


def gradients(step):
    return {"w": jnp.full((8, 16), 0.5 + 0.01 * step), "b": jnp.array([1.0, -2.0, 0.25])}


def spoilt(tree, bad):
    return jax.tree.map(lambda g: jnp.where(bad, jnp.inf, g).astype(g.dtype), tree)


def run(optimizer, bad, weights=None, dtype=jnp.float16):
    """Steps with the gradients of a scaled loss in `dtype`: the last weights and state, the scales and the updates."""

    def step(carry, at):
        weights, state = carry
        scaled = jax.tree.map(lambda g: (g * scale_of(state)).astype(dtype), gradients(at[0]))
        updates, state = optimizer.update(spoilt(scaled, at[1] > 0), state, weights)
        return (optax.apply_updates(weights, updates), state), (scale_of(state), updates)

    weights = params() if weights is None else weights
    steps = np.stack([np.arange(len(bad), dtype=np.float32), np.asarray(bad, np.float32)], 1)
    all_steps = jax.jit(lambda weights: lax.scan(step, (weights, optimizer.init(weights)), steps))
    (weights, state), (scales, updates) = all_steps(weights)
    return weights, state, scales, updates


def test_the_scale_follows_the_published_rule():
    _, state, scales, updates = run(loss_scaling(optax.sgd(0.1), 16.0, **OPTIONS), BAD)
    np.testing.assert_array_equal(scales, oracle(BAD, 16.0, 3))
    assert {2.0, 64.0} <= set(np.asarray(scales).tolist())
    assert (int(state.steps), int(state.skipped), int(state.skipped_in_a_row)) == (len(BAD), sum(BAD), 0)
    zero = np.all(np.asarray(updates["w"]) == 0, axis=(1, 2))
    np.testing.assert_array_equal(zero, np.array(BAD) == 1)
    _, state, scales, _ = run(loss_scaling(optax.sgd(0.1), 16.0, dynamic=False), BAD)
    np.testing.assert_array_equal(scales, 16.0)
    assert int(state.skipped) == sum(BAD)
    _, _, scales, _ = run(loss_scaling(optax.sgd(0.1), 10.0, growth_factor=3.0, backoff_factor=0.25, **OPTIONS), BAD)
    np.testing.assert_array_equal(scales, np.float32(oracle(BAD, 10.0, 3, 3.0, 0.25)))


def test_the_run_is_that_without_a_scale_and_without_the_bad_steps():
    """Of a scale that is a power of two, gradients in float16 lose nothing here."""
    tx = optax.chain(novoclip.autoclip(50.0, window=4), optax.adam(0.1))
    weights, state, _, _ = run(loss_scaling(tx, 16.0, **OPTIONS), BAD)

    def step(carry, i):
        plain, inner = carry
        exact = jax.tree.map(lambda g: g.astype(jnp.float16).astype(jnp.float32), gradients(i))
        updates, inner = tx.update(exact, inner, plain)
        return (optax.apply_updates(plain, updates), inner), None

    good = np.flatnonzero(np.equal(BAD, 0)).astype(np.float32)
    plain, inner = jax.jit(lambda weights: lax.scan(step, (weights, tx.init(weights)), good)[0])(params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), weights, plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), state.inner, inner)
    assert int(optax.tree.get(state.inner, "count")) == BAD.count(0)


def test_limits_are_those_of_unscaled_gradients():
    gradient = np.float32([3.0, 4.0])
    optimizer = compiled(loss_scaling(novoclip.clip_by_global_norm(1.0), 1024.0))
    state = optimizer.init(gradient)
    updates, state = optimizer.update((1024 * gradient).astype(np.float16), state, gradient)
    np.testing.assert_allclose(updates, [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(state.inner.norms, 5.0, rtol=1e-6)
    small = np.float32([2.0**-20, 0.0])  # its square, and it divided by 2^10, are 0 in float16
    seen = []
    probe = loss_scaling(optax.stateless(lambda g, _: seen.append(g) or g), 2.0**15)
    jax.eval_shape(probe.update, (2.0**15 * small).astype(np.float16), jax.eval_shape(probe.init, small))
    assert seen[0].dtype == jnp.float32
    optimizer = compiled(loss_scaling(optax.identity(), 2.0**15))
    updates, _ = optimizer.update(np.float32([2.0**-5, 0.0]), optimizer.init(small), small)
    np.testing.assert_array_equal(updates, small)


@pytest.mark.parametrize("guard", [novoclip.skip_spikes, novoclip.protect])
def test_an_overflow_is_no_spike(guard):
    _, state, _, _ = run(loss_scaling(guard(optax.sgd(0.1)), 16.0, **OPTIONS), BAD)
    _, clean, _, _ = run(loss_scaling(guard(optax.sgd(0.1)), 16.0, **OPTIONS), [0] * BAD.count(0))
    for name in ("skipped", "nonfinite", "steps"):
        assert int(optax.tree.get(state.inner, name)) == int(optax.tree.get(clean.inner, name))
    assert int(optax.tree.get(state.inner, "steps")) == BAD.count(0)


def test_updates_have_the_dtype_of_the_parameters_else_of_the_gradients():
    optimizer = compiled(loss_scaling(optax.sgd(1.0), 8.0))
    for kind in (jnp.float16, jnp.float32, jnp.bfloat16):
        weights = np.ones(2, kind)
        state = optimizer.init(weights)
        updates, _ = optimizer.update(np.ones(2, np.float16), state, weights)
        assert updates.dtype == kind
        np.testing.assert_array_equal(np.asarray(updates, np.float32), -0.125)
    assert optimizer.update(np.ones(2, np.float16), state)[0].dtype == jnp.float16


def test_a_scale_that_is_given_is_used_and_kept():
    optimizer = optax.chain(loss_scaling(optax.sgd(1.0), 8.0, growth_interval=1))

    @jax.jit
    def three_steps(weights, scale):
        state, taken = optimizer.init(weights), []
        for size, extra in ((6.0, {"loss_scale": scale}), (np.nan, {"loss_scale": 5}), (1.0, {})):
            updates, state = optimizer.update(size * weights, state, weights, **extra)
            taken.append((updates, scale_of(state)))
        return taken

    (updates, first), *others = three_steps(np.ones(2, np.float32), 3.0)
    np.testing.assert_array_equal(updates, -2.0)
    assert [float(scale) for scale in (first, *(scale for _, scale in others))] == [3.0, 5.0, 10.0]


def test_beside_flaxs_dynamic_scale_gradients_are_unscaled_already():
    """Either alone, or both with loss_scale=1.0; both without it unscale twice."""
    overflow = np.asarray(BAD[:14], np.float32)

    def loss(weights, bad):
        return jnp.sum(weights["w"] * 0.5) + jnp.sum(weights["b"]) * jnp.where(bad > 0, jnp.inf, 1.0)

    def trained(extra):
        optimizer = loss_scaling(optax.sgd(0.5), 16.0)
        flaxs = DynamicScale(scale=16.0, growth_interval=3, minimum_scale=2.0)

        def step(carry, bad):
            flaxs, weights, state = carry
            flaxs, finite, _, found = flaxs.value_and_grad(lambda weights: loss(weights, bad))(weights)
            updates, state = optimizer.update(found, state, weights, **extra)
            return (flaxs, optax.apply_updates(weights, updates), state), (flaxs.scale, finite)

        run = jax.jit(lambda weights: lax.scan(step, (flaxs, weights, optimizer.init(weights)), overflow))
        (_, weights, state), (scales, finite) = run(params())
        return weights, state, scales, finite

    weights, state, scales, finite = trained({"loss_scale": 1.0})
    np.testing.assert_array_equal(finite, overflow == 0)
    assert int(state.skipped) == int(overflow.sum())
    good = int((overflow == 0).sum())
    np.testing.assert_allclose(weights["b"], -0.5 * good, rtol=1e-6)
    assert float(np.asarray(scales)[-1]) < 16.0
    twice = trained({})[0]
    assert np.all(np.abs(twice["b"]) < 0.5 * np.abs(weights["b"]))


def test_float16_parameters_with_float32_weights():
    optimizer = master_weights(loss_scaling(optax.sgd(1e-5), 16.0, **OPTIONS))
    weights = jax.tree.map(np.float16, params())
    weights, state, scales, _ = run(optimizer, BAD, weights)
    np.testing.assert_array_equal(scales, oracle(BAD, 16.0, 3))
    good = [i for i, bad in enumerate(BAD) if not bad]
    expected = 1 - 1e-5 * sum(float(np.float16(0.5 + 0.01 * i)) for i in good)
    np.testing.assert_allclose(state.weights["w"], expected, atol=1e-6)
    assert weights["w"].dtype == jnp.float16
    for inside in (master_weights, stochastic_rounding):
        with pytest.raises(TypeError, match="write master_weights"):
            loss_scaling(optax.chain(inside(optax.sgd(0.1)))).init(weights)


def test_with_multi_steps():
    """Outside it a bad step is skipped alone. Inside it Optax's accumulator keeps what is not finite."""
    around = loss_scaling(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), 16.0, **OPTIONS)
    weights, state, _, _ = run(around, BAD)
    good = [i for i, bad in enumerate(BAD) if not bad]
    pairs = [
        np.mean([float(np.float16(0.5 + 0.01 * i)) for i in good[at : at + 2]]) for at in range(0, len(good) - 1, 2)
    ]
    np.testing.assert_allclose(weights["w"], 1 - 0.1 * sum(pairs), rtol=1e-3)
    assert int(state.inner.gradient_step) == len(good) // 2
    inside = optax.MultiSteps(loss_scaling(optax.sgd(0.1), 16.0, **OPTIONS), 2).gradient_transformation()
    _, state, scales, _ = run(inside, [0] * 12)
    np.testing.assert_array_equal(np.asarray(scales)[1::2], oracle([0] * 6, 16.0, 3))
    _, state, _, _ = run(inside, [1, *[0] * 11])
    assert int(state.inner_opt_state.skipped) == 6


def test_state_passes_through_everything(tmp_path):
    optimizer = optax.chain(loss_scaling(optax.chain(novoclip.clip_by_norm(1.0), optax.adam(0.1)), 16.0, **OPTIONS))
    weights, last, _, _ = run(optimizer, BAD[:5])
    state = optimizer.init(params())
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.size]
    assert len({leaf.unsafe_buffer_pointer() for leaf in arrays}) == len(arrays)

    @functools.partial(jax.jit, donate_argnums=2)
    def step(i, bad, state, weights):
        scaled = jax.tree.map(jnp.float16, optax.tree.scale(scale_of(state), gradients(i)))
        updates, state = optimizer.update(spoilt(scaled, bad), state, weights)
        return optax.apply_updates(weights, updates), state

    donated = params()
    for i, bad in enumerate(BAD[:5]):
        donated, state = step(np.float32(i), bad > 0, state, donated)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), donated, weights)
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state) == jax.tree.structure(last)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    # Two at once, of which one overflows.
    stack = jax.tree.map(lambda leaf: np.stack([leaf, np.asarray(leaf) * np.inf]), gradients(0.0))
    weights = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), params())
    first = jax.vmap(lambda gradient, weights: optimizer.update(gradient, optimizer.init(weights), weights))
    _, mapped = jax.jit(first)(stack, weights)
    np.testing.assert_array_equal(scale_of(mapped), [16.0, 8.0])


def test_on_a_mesh_one_bad_shard_skips_the_step_everywhere():
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spec = {"w": PartitionSpec("x"), "b": PartitionSpec()}
    optimizer = loss_scaling(optax.sgd(1.0), 16.0)

    def step(weights, found):
        updates, state = optimizer.update(found, optimizer.init(weights), weights)
        return updates, scale_of(state)

    found = gradients(0.0)
    found["w"] = np.array(found["w"])
    found["w"][5, 3] = np.inf
    manual = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, PartitionSpec())))
    placed = jax.tree.map(lambda leaf, s: jax.device_put(leaf, NamedSharding(mesh, s)), (params(), found), (spec, spec))
    for each, given in ((manual, (params(), found)), (jax.jit(step), placed)):
        updates, scale = each(*given)
        assert float(scale) == 8.0
        assert not np.any(updates["w"])
        assert not np.any(updates["b"])


def test_other_leaves_pass():
    tree = {"w": jnp.ones(2), "none": None, "masked": optax.MaskedNode(), "i": np.zeros(3, jax.dtypes.float0)}
    optimizer = loss_scaling(optax.identity(), 4.0)
    weights = tree | {"i": jnp.arange(3)}
    updates, _ = optimizer.update(tree, optimizer.init(weights), weights)
    np.testing.assert_array_equal(updates["w"], 0.25)
    assert updates["none"] is None
    assert updates["i"].dtype == jax.dtypes.float0


def test_what_is_wrong_is_said():
    optimizer = loss_scaling(optax.sgd(0.1))
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(ValueError, match="needs a state of type LossScaleState; got tuple"):
        optimizer.update(jnp.ones(2), ())
    with pytest.raises(ValueError, match="was made by other, and not by loss_scaling"):
        optimizer.update(jnp.ones(2), state._replace(origin=made_by("other")))
    with pytest.raises(TypeError, match="gradients must be real or complex"):
        optimizer.update(jnp.arange(2), state)
    for got, found in ((optax.sgd(0.1).init(jnp.ones(2)), 0), ((state, state), 2)):
        with pytest.raises(ValueError, match=f"must hold one state of loss_scaling; got {found}"):
            scale_of(got)
    for options, error, text in (
        ({"scale": 0.0}, ValueError, "scale must be a number in"),
        ({"scale": lambda step: 1.0}, TypeError, "scale must be a number, not a schedule"),
        ({"scale": 2.0**30}, ValueError, "scale must be between min_scale=1.0 and max_scale=16777216.0"),
        ({"growth_interval": 0}, ValueError, "growth_interval must be an integer of at least 1"),
        ({"growth_factor": 1.0}, ValueError, "growth_factor must be a number"),
        ({"backoff_factor": 1.0}, ValueError, "backoff_factor must be a number"),
        ({"dynamic": 16.0}, TypeError, "dynamic must be True or False; got 16.0"),
    ):
        with pytest.raises(error, match=text):
            loss_scaling(optax.sgd(0.1), **options)
