"""What guards leave out, what they leave alone, and that they find back to work."""

import functools
import json
from pathlib import Path

from flax import linen
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import apply_updates, compiled
from tests.trajectories.inputs import gradients_without_faults, losses

STORED = json.loads((Path(__file__).parent / "trajectories" / "rules.json").read_text(encoding="utf-8"))
PARAMS = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(1, np.float32)}
DEFAULT = novoclip.skip_spikes(optax.sgd(1.0))
FOR_EVER = novoclip.skip_spikes(optax.sgd(1.0), max_in_a_row=10**6)
SHORT = novoclip.limits.deviation(2.0, window=8, warmup=4, learn="raw")
IN_LOOP = novoclip.skip_spikes(optax.sgd(1.0), SHORT, value_limit=SHORT, max_in_a_row=3)
EARLY = novoclip.limits.deviation(6.0, window=16, warmup=4, learn="raw")


def gradients(size, dtype=jnp.float32):
    """A tree whose norm is `size`, on the host where that is a number."""
    full = jnp.full if isinstance(size, jax.Array) else np.full
    return {"kernel": full((2, 2), 0.3 * size, dtype), "bias": full(1, 0.8 * size, dtype)}


@functools.partial(jax.jit, static_argnums=0)
def scanned(optimizer, sizes, values=None):
    """What remains of each gradient of one number, and the counters and limits of all steps."""

    def step(state, pair):
        updates, state = optimizer.update(pair[0][None], state, **({} if values is None else {"value": pair[1]}))
        return state, (-updates[0], state._replace(inner=(), norm_limit_state=(), value_limit_state=()))

    return lax.scan(step, optimizer.init(sizes[:1]), (sizes, sizes if values is None else values))[1]


def lost(sizes, values=None, guard=DEFAULT):
    """Which steps are left out."""
    updates, _ = scanned(guard, sizes, values)
    return np.asarray(updates) == 0


def noisy(levels, noise, seed=0):
    return np.asarray(levels * (1 + noise * np.random.default_rng(seed).normal(size=len(levels))), np.float32)


def loop(sizes, values, sigma, window, warmup, most):
    """The specification, step by step in NumPy: what remains of each norm, and what became of the step."""
    good, row, counts = ([], []), 0, {"skipped": 0, "nonfinite": 0, "released": 0}

    def limit(history):
        latest = history[-window:]
        least = 1e-6 * abs(np.mean(latest)) if latest else 0.0
        return np.mean(latest) + sigma * max(np.std(latest), least) if len(latest) >= warmup else np.inf

    for pair in zip(sizes, values, strict=True):
        limits = [limit(history) for history in good]
        finite = np.all(np.isfinite(pair))
        spike = finite and any(seen > bound for seen, bound in zip(pair, limits, strict=True))
        released = spike and row >= most
        taken = finite and (not spike or released)
        row = row + 1 if spike else 0 if finite else row
        counts["skipped"] += not taken
        counts["nonfinite"] += not finite
        counts["released"] += released
        if taken:
            for history, seen in zip(good, pair, strict=True):
                history.append(seen)
        yield (min(pair[0], limits[0]) if released else pair[0]) if taken else 0.0, dict(counts)


@pytest.mark.usefixtures("x64")
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), level=st.sampled_from([-3.0, 0.0, 5.0]))
def test_decisions_are_those_of_a_loop(seed, level):
    generator = np.random.default_rng(seed)
    steps = np.arange(150)
    sizes = np.exp(0.5 * generator.normal(size=150)) * np.where(steps > 90, 20.0, 1.0)
    values = level + generator.standard_t(3, size=150) + np.where((steps > 50) & (steps < 70), 8.0, 0.0)
    for broken, by in ((sizes, np.inf), (values, np.nan), (values, -np.inf)):
        broken[generator.integers(0, 150, 3)] = by
    sent, states = jax.device_get(scanned(IN_LOOP, sizes, values))
    for step, (norm, counts) in enumerate(loop(sizes, values, 2.0, 8, 4, 3)):
        np.testing.assert_allclose(sent[step], norm, rtol=1e-12, err_msg=str(step))
        assert {name: int(getattr(states, name)[step]) for name in counts} == counts
    assert int(states.steps[-1]) == 150


INNER = {
    "adam": optax.adam(0.1),
    "adamw on a schedule": optax.adamw(optax.linear_schedule(0.1, 0.0, 20), weight_decay=0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "weight decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
    "clip, then adam": optax.chain(novoclip.zclip(warmup=3), optax.adam(0.1)),
    "injected": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 20)),
    "every second step": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "uclip": optax.chain(novoclip.uclip(novoclip.clip_by_value(0.1)), optax.sgd(0.1, momentum=0.9)),
}
USUAL = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.1, 0.9]
BAD = {
    "nan": (jnp.nan, 1.0),
    "infinity": (-jnp.inf, 1.0),
    "spike": (100.0, 1.0),
    "loss": (1.0, 100.0),
    "nan loss": (1.0, jnp.nan),
    "infinite loss": (1.0, -jnp.inf),
}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER.keys())
def test_the_inner_state_is_as_if_the_step_had_not_been(inner):
    guards = (novoclip.skip_spikes(inner, EARLY, value_limit=EARLY), novoclip.guard_nonfinite(inner))
    first, bare = inner.init(PARAMS), jax.jit(inner.update)
    for guard, bad in zip(guards, (BAD, ("nan", "infinity")), strict=True):
        update = jax.jit(guard.update, donate_argnums=(1,))
        state, params, plain, expected = guard.init(PARAMS), PARAMS, first, PARAMS
        for position, size in enumerate(USUAL):
            for kind in bad if position == 7 else ():
                updates, state = update(gradients(BAD[kind][0]), state, params, value=np.float32(BAD[kind][1]))
                assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates)), kind
            updates, state = update(gradients(size), state, params, value=np.float32(1 + 0.1 * (position % 3)))
            wanted, plain = bare(gradients(size), plain, expected)
            params, expected = apply_updates(params, updates), apply_updates(expected, wanted)
        # The same to rounding, since it is another program; bit for bit below.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7),
            (params, state.inner),
            (expected, plain),
        )
        before = jax.tree.map(np.array, state.inner)
        for kind in bad:
            _, state = update(gradients(BAD[kind][0]), state, params, value=np.float32(BAD[kind][1]))
        jax.tree.map(np.testing.assert_array_equal, state.inner, before)


def test_nan_does_not_cause_further_skips():
    sizes = noisy(np.ones(300), 0.1)
    sizes[100:140] = np.nan
    sizes[170] = np.inf
    values = noisy(-np.ones(300), 0.1, seed=1)
    values[200:220] = np.nan
    expected = ~np.isfinite(sizes) | ~np.isfinite(values)
    np.testing.assert_array_equal(lost(sizes, values), expected)
    updates, states = jax.device_get(scanned(DEFAULT, sizes, values))
    assert int(states.nonfinite[-1]) == int(states.skipped[-1]) == 61
    np.testing.assert_array_equal(updates[~expected], sizes[~expected])


@pytest.mark.parametrize("by", [4.0, 10.0, 1000.0, 1e30])
@pytest.mark.parametrize("kind", ["norm", "loss", "both"])
def test_a_lasting_shift_costs_as_many_steps_as_are_left_out_in_a_row(kind, by):
    levels = np.where(np.arange(600) < 300, 1.0, by)
    calm = noisy(np.ones(600), 0.02, seed=2)
    sizes = noisy(levels, 0.02) if kind != "loss" else calm
    values = {"norm": None, "loss": noisy(levels, 0.02, seed=1), "both": noisy(levels, 0.02, seed=1)}[kind]
    missed = lost(sizes, values)
    np.testing.assert_array_equal(np.flatnonzero(missed), np.arange(300, 316))
    # axlearn's rule, which has no such end, never gets over it.
    assert np.all(lost(sizes, values, FOR_EVER)[300:])


def test_after_too_many_in_a_row_steps_go_through_clipped_and_are_learned_raw():
    limit = novoclip.limits.deviation(3.0, window=8, warmup=2, learn="raw")
    optimizer = novoclip.skip_spikes(optax.sgd(1.0), limit, max_in_a_row=2)
    updates, states = jax.device_get(scanned(optimizer, np.float32([1, 3, 100, np.nan, 100, 100, 100, 100])))
    np.testing.assert_array_equal(states.skipped, [0, 0, 1, 2, 3, 3, 3, 3])
    np.testing.assert_array_equal(states.spikes_in_a_row, [0, 0, 1, 1, 2, 3, 0, 0])
    np.testing.assert_allclose(updates, [1, 3, 0, 0, 0, 2 + 3, 100, 100], rtol=1e-6)
    history = np.array([1.0, 3.0, 100.0])
    np.testing.assert_allclose(states.limit[6], history.mean() + 3 * history.std(), rtol=1e-6)


def test_a_loss_may_be_negative_and_may_fall():
    values = noisy(-5 * np.ones(200), 0.02)
    values[150:153] = -4.0, 0.0, -50.0
    np.testing.assert_array_equal(np.flatnonzero(lost(noisy(np.ones(200), 0.1), values)), [150, 151])


def test_it_is_the_norm_before_the_inner_clip_that_counts():
    optimizer = novoclip.skip_spikes(optax.chain(novoclip.clip_by_global_norm(0.5), optax.sgd(1.0)), EARLY)
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for size in (1.0, 2.0, 1.0, 2.0, 50.0):
        updates, state = update(gradients(size), state)
    assert not np.any(updates["kernel"])
    np.testing.assert_allclose(state.norm, 50.0, rtol=1e-6)
    np.testing.assert_allclose(state.limit, 1.5 + 6 * 0.5, rtol=1e-6)


def test_a_spike_leaves_flax_training_as_it_was():
    model = linen.Dense(1)
    inputs = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    targets = inputs @ np.float32([[1.0], [-2.0], [0.5]])
    optimizer = optax.chain(novoclip.clip_by_global_norm(1.0), optax.adam(0.05))
    guard = novoclip.skip_spikes(optimizer, novoclip.limits.deviation(6.0, warmup=5))
    params = jax.jit(model.init)(jax.random.key(0), inputs)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=guard)

    @jax.jit
    def train(state, targets):
        loss = lambda params: jnp.mean((state.apply_fn(params, inputs) - targets) ** 2)  # noqa: E731
        value, slopes = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=slopes), value

    seen = []
    for step in range(100):
        after, value = train(state, 1e4 * targets if step % 10 == 9 else targets)
        if step % 10 == 9:
            jax.tree.map(
                np.testing.assert_array_equal,
                (after.params, after.opt_state.inner),
                (state.params, state.opt_state.inner),
            )
        else:
            seen.append(float(value))
        state = after
    assert int(novoclip.metrics(state.opt_state)["spikes/skipped"]) == 10
    assert seen[-1] < 0.1 * seen[0]


def test_a_mapped_guard_decides_for_each_alone():
    optimizer = novoclip.guard_nonfinite(novoclip.skip_spikes(optax.adam(0.1), EARLY))
    sizes = np.array([[*USUAL, 100.0, 1.0], [*USUAL[:-1], np.nan, 1.0, 1.0]], np.float32)

    def train(sizes):
        def step(carry, size):
            updates, state = optimizer.update(gradients(size), carry[1], carry[0], value=size)
            return (optax.apply_updates(carry[0], updates), state), updates

        return lax.scan(step, (PARAMS, optimizer.init(PARAMS)), sizes)

    mapped, train_alone = jax.device_get(jax.jit(jax.vmap(train))(sizes)), jax.jit(train)
    for row in range(2):
        alone = train_alone(sizes[row])
        here = jax.tree.map(lambda leaf, row=row: leaf[row], mapped)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), here, alone)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(mapped[1]))
    spikes = mapped[0][1].inner
    assert spikes.skipped.tolist() == [1, 0]
    assert mapped[0][1].nonfinite.tolist() == [0, 1]


@pytest.mark.parametrize("guard", [lambda inner: novoclip.skip_spikes(inner, EARLY), novoclip.guard_nonfinite])
def test_around_multi_steps_a_bad_gradient_is_left_out_of_the_sum(guard):
    optimizer = guard(optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation())
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    sums = []
    for size in (1.0, 2.0, jnp.nan, 3.0, -jnp.inf, 5.0):
        updates, state = update(gradients(size), state)
        sums.append(float(updates["bias"][0]) / -0.8)
    np.testing.assert_allclose(sums, [0, 1.5, 0, 0, 0, 4], rtol=1e-6)


def test_within_multi_steps_the_mean_is_judged():
    optimizer = optax.MultiSteps(novoclip.skip_spikes(optax.sgd(1.0), EARLY), 2)
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for size in (*USUAL[:8], *USUAL[:2], 100.0, 1.0, 1.0, 1.2):
        updates, state = update(gradients(size), state, PARAMS)
    found = novoclip.metrics(state)
    assert int(found["spikes/steps"]) == 7
    assert int(found["spikes/skipped"]) == 1
    np.testing.assert_allclose(updates["bias"], -0.8 * 1.1, rtol=1e-6)


def test_metrics_of_both_guards_and_of_the_rule_within():
    chain = optax.chain(novoclip.clip_by_global_norm(0.5), optax.adam(0.1))
    guard = novoclip.skip_spikes(chain, EARLY, value_limit=EARLY)
    optimizer = optax.chain(novoclip.guard_nonfinite(guard), optax.identity())
    state = optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    usual = ((1.0, 1.0), (2.0, 1.1), (1.0, 0.9), (2.0, 1.0))
    for size, value in (*usual, (100.0, 1.0), (100.0, 9.0), (1.0, 9.0), (1.0, 8.0), (jnp.nan, 1.0), (1.0, jnp.nan)):
        _, state = update(gradients(size), state, PARAMS, value=value)
    found = {name: float(value) for name, value in novoclip.metrics(state).items()}
    expected = {
        "guard/steps": 10,
        "guard/nonfinite": 1,
        "spikes/steps": 9,
        "spikes/skipped": 5,
        "spikes/nonfinite": 1,
        "spikes/norm_spikes": 2,
        "spikes/value_spikes": 3,
        "spikes/released": 0,
        "spikes/norm": 1.0,
        "spikes/limit": 4.5,
        "spikes/value_limit": 1.0 + 6 * np.std([1.0, 1.1, 0.9, 1.0]),
        "clip/steps": 4,
        "clip/clipped": 4,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_without_a_loss_its_limit_stays_infinite():
    optimizer = novoclip.skip_spikes(optax.sgd(1.0), EARLY)
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for size in USUAL:
        _, state = update(gradients(size), state)
    assert np.isinf(novoclip.metrics(state)["spikes/value_limit"])
    assert np.isfinite(novoclip.metrics(state)["spikes/limit"])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_comes_back_bit_for_bit(dtype):
    optimizer = novoclip.skip_spikes(optax.identity(), EARLY)
    state, update = optimizer.init(gradients(1.0, dtype)), jax.jit(optimizer.update)
    scalar = jnp.dtype(dtype).type
    for size in USUAL:
        entering = gradients(size, dtype)
        updates, state = update(entering, state, value=scalar(size))
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, entering)
        jax.tree.map(np.testing.assert_array_equal, updates, entering)
    updates, state = update(gradients(100.0, dtype), state, value=scalar(1.0))
    assert all(leaf.dtype == dtype and not np.any(leaf) for leaf in jax.tree.leaves(updates))
    assert state.norm.dtype == jnp.float32


@pytest.mark.parametrize("value", [True, np.bool_(True), "1.0", [1.0], 1j, jnp.array(1j), jnp.ones(1), np.ones((2, 2))])
def test_a_loss_of_another_type_is_refused_by_name(value):
    optimizer = novoclip.skip_spikes(optax.sgd(0.1))
    with pytest.raises(TypeError, match="value must be the loss"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), value=value)


def test_arguments_of_another_type_are_refused_by_name():
    for wrong in ("1.0", True, optax.sgd(0.1), novoclip.limits.agc(0.1)):
        with pytest.raises(TypeError, match="limit must be a number, or a Limit"):
            novoclip.skip_spikes(optax.sgd(0.1), wrong)
    for name in ("limit", "clip"):
        with pytest.raises(ValueError, match=rf"{name} must be a number in \[0, inf\]"):
            novoclip.skip_spikes(optax.sgd(0.1), **{name: -1.0})
    for wrong in (16.0, True, "16"):
        with pytest.raises(TypeError, match="max_in_a_row"):
            novoclip.skip_spikes(optax.sgd(0.1), max_in_a_row=wrong)
    with pytest.raises(ValueError, match="max_in_a_row"):
        novoclip.skip_spikes(optax.sgd(0.1), max_in_a_row=0)
    for guard in (novoclip.skip_spikes, novoclip.guard_nonfinite):
        with pytest.raises(TypeError, match="inner must be"):
            guard(0.1)
    with pytest.raises(ValueError, match="policy"):
        novoclip.guard_nonfinite(optax.sgd(0.1), policy="zero")
    for wrong in (True, "no", optax.sgd(0.1), novoclip.limits.agc(0.1)):
        with pytest.raises(TypeError, match="value_limit must be a number, a Limit"):
            novoclip.skip_spikes(optax.sgd(0.1), value_limit=wrong)


def test_a_percentile_may_be_the_limit():
    limit = novoclip.limits.autoclip(99.0, include_current=False)
    guard = novoclip.skip_spikes(optax.sgd(1.0), limit)
    updates, states = jax.device_get(scanned(guard, np.float32([1, 0.5, 0.9, 7, 0.8, np.nan, 0.7])))
    np.testing.assert_allclose(updates, [1.0, 0.5, 0.9, 0, 0.8, 0, 0.7], rtol=1e-6)
    np.testing.assert_allclose(states.limit[3], np.percentile([1.0, 0.5, 0.9], 99), rtol=1e-6)


def test_a_percentile_as_the_limit_leaves_out_about_its_share():
    limit = novoclip.limits.autoclip(99.0, window=200, include_current=False)
    updates, _ = scanned(novoclip.skip_spikes(optax.sgd(1.0), limit, learn="all"), noisy(np.ones(4000), 0.1))
    assert np.mean(np.asarray(updates)[2000:] == 0) < 0.05


def test_olmo_learns_spikes_and_so_lets_the_next_one_through():
    case = STORED["skip step, loss and norm, 6 sigma: gradient"]
    theirs = [i for i, updates in enumerate(case["updates"]) if not np.any(updates["a/bias"])]
    limit = novoclip.limits.deviation(6.0, window=16, warmup=8, learn="raw")
    optimizer = novoclip.skip_spikes(optax.identity(), limit)
    entering = gradients_without_faults()
    state, update, ours = optimizer.init(entering[0]), jax.jit(optimizer.update), []
    for i, (gradient, value) in enumerate(zip(entering, losses(), strict=True)):
        updates, state = update(gradient, state, value=value)
        ours += [] if np.any(updates["a/bias"]) else [i]
    # Steps 22 (the loss), 28 and 29 (the gradient) are the faults in the data.
    assert (theirs, ours) == ([22, 28], [22, 28, 29])


def odd_tree():
    tree = {"a": np.ones(3), "b": np.ones((2, 2)), "c": np.float32(2.0), "d": np.array([1 + 1j, 2])}
    bad = {
        "a": np.array([1, np.nan, -np.inf]),
        "b": np.full((2, 2), 3.0),
        "c": np.float32(np.inf),
        "d": np.array([1 + 1j, complex(0, np.nan)]),
    }
    return jax.tree.map(lambda x: np.asarray(x, np.complex64 if x.dtype == complex else np.float32), (tree, bad))


POLICIES = {
    "skip": {"a": [0, 0, 0], "b": np.zeros((2, 2)), "c": 0, "d": [0, 0]},
    "zero_leaf": {"a": [0, 0, 0], "b": np.full((2, 2), 3.0), "c": 0, "d": [0, 0]},
    "zero_element": {"a": [1, 0, 0], "b": np.full((2, 2), 3.0), "c": 0, "d": [1 + 1j, 0]},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_do_what_they_say(policy):
    good, bad = odd_tree()
    guard = novoclip.guard_nonfinite(optax.identity(), policy=policy)
    update, state = jax.jit(guard.update), guard.init(good)
    for entering, expected in ((good, good), (bad, POLICIES[policy]), (good, good)):
        updates, state = update(entering, state)
        jax.tree.map(
            np.testing.assert_array_equal,
            updates,
            jax.tree.map(lambda leaf, x: np.asarray(x), good, expected, is_leaf=lambda x: isinstance(x, list)),
        )
        assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, good)
    assert (int(state.steps), int(state.nonfinite)) == (3, 1)
    assert state.leaf_steps.tolist() == [1, 0, 1, 1]
    assert state.leaf_last.tolist() == [2, 0, 2, 2]


@pytest.mark.parametrize("inner", ["adam", "momentum", "weight decay"])
@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_the_policy_nothing_becomes_nan(policy, inner):
    guard = novoclip.guard_nonfinite(INNER[inner], policy=policy)
    update, state, params = jax.jit(guard.update), guard.init(PARAMS), PARAMS
    for size in (1.0, jnp.nan, jnp.inf, 1.0, -jnp.inf, 1.0):
        bad = PARAMS | {"kernel": np.float32([[1, size], [1, 1]])}
        updates, state = update(bad, state, params)
        params = apply_updates(params, updates)
    assert int(state.nonfinite) == 3
    for leaf in jax.tree.leaves((params, state.inner)):
        assert not np.any(np.isnan(leaf))


def test_finite_gradients_pass_a_guard_bit_for_bit():
    extremes = {"a": np.float32([3e38, -3e38, 1e-45, -0.0]), "b": np.float16([6e4, 6e-8])}
    for policy in POLICIES:
        guard = compiled(novoclip.guard_nonfinite(optax.identity(), policy=policy))
        updates, state = guard.update(extremes, guard.init(extremes))
        for name, leaf in extremes.items():
            assert np.asarray(updates[name]).tobytes() == np.asarray(leaf).tobytes()
        assert int(state.nonfinite) == 0


def test_counters_stop_at_the_largest_integer():
    largest = np.int32(np.iinfo(np.int32).max)
    names = ("steps", "skipped", "nonfinite", "released", "spikes_in_a_row")
    guard = compiled(novoclip.skip_spikes(optax.sgd(1.0), novoclip.limits.constant(1.0)))
    state = guard.init(PARAMS)._replace(**dict.fromkeys(names, largest))
    for size in (jnp.nan, 100.0):
        _, state = guard.update(gradients(size), state)
        assert all(int(getattr(state, name)) == int(largest) for name in names)


def test_float0_leaves_are_passed_on():
    params = {"w": np.ones(2, np.float32), "table": np.arange(3, dtype=np.int32)}
    for guard in (novoclip.guard_nonfinite(optax.identity()), novoclip.skip_spikes(optax.identity())):

        @jax.jit
        def step(size, guard=guard):
            slopes = jax.grad(lambda tree: jnp.sum(size * tree["w"] ** 2), allow_int=True)(params)
            updates, _ = guard.update(slopes, guard.init(params))
            assert slopes["table"].dtype == updates["table"].dtype == jax.dtypes.float0
            return updates["w"]

        np.testing.assert_array_equal(step(np.float32([1, 1])), [2, 2])
        np.testing.assert_array_equal(step(np.float32([np.nan, 1])), [0, 0])


@pytest.mark.parametrize("guard", [novoclip.guard_nonfinite, novoclip.skip_spikes])
def test_calls_outside_jit_keep_no_copy_of_the_model(guard):
    params, transform = {"w": jnp.ones(1000)}, guard(optax.sgd(0.1, momentum=0.9))
    state = transform.init(params)
    held = []
    for _ in range(4):
        _, state = transform.update(params, state, params)
        held.append(sum(array.nbytes for array in jax.live_arrays() if array.size == 1000))
    assert held[-1] <= held[1]
