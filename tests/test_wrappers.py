"""Wrappers are their formulas, keep what they promise, and let nothing that is not finite stay."""

import functools

from flax import linen
from hypothesis import given
from hypothesis import strategies as st
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled

RULES = {
    "global norm": novoclip.clip_by_global_norm(1.0),
    "per tensor, smooth": novoclip.clip_by_norm(0.7, shape="smooth"),
    "value": novoclip.clip_by_value(0.5),
    "normalize": novoclip.normalize_by_norm(3.0),
    "drop": novoclip.clip_by_norm(2.0, shape="drop"),
    "autoclip": novoclip.autoclip(50.0, window=9),
    "zclip": novoclip.zclip(warmup=5),
    "centralize": novoclip.centralize(),
}
SOME = ("global norm", "value", "autoclip")
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
some_rules = pytest.mark.parametrize("rule", [RULES[name] for name in SOME], ids=SOME)


def tree(dtype, *shape, seed=0, scale=1.0):
    generator = np.random.default_rng(seed)
    draw = lambda *rest: (scale * generator.normal(size=(*shape, *rest))).astype(jnp.dtype(dtype))  # noqa: E731
    return {"bias": draw(3), "kernel": draw(2, 3)}


def all_steps(rule, gradients, params):
    """The updates of every step and the final state."""

    def step(state, gradient):
        updates, state = rule.update(gradient, state, params)
        return state, updates

    state, updates = jax.jit(lambda gradients: lax.scan(step, rule.init(params), gradients))(gradients)
    return updates, state


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def without(gradients, steps):
    return jax.tree.map(lambda leaf: np.delete(leaf, steps, axis=0), gradients)


def with_bad(gradients, steps):
    bias = gradients["bias"].copy()
    bias[steps, 1] = np.nan, np.inf, -np.inf
    return gradients | {"bias": bias}


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        pytest.param(
            rule, dtype, id=f"{name}-{dtype}", marks=() if name in SOME or dtype == "float32" else pytest.mark.full
        )
        for name, rule in RULES.items()
        for dtype in ("bfloat16", "float32", "float64")
    ],
)
def test_uclip_loses_nothing(rule, dtype, x64):
    gradients = tree(dtype, 200)
    params = jax.tree.map(lambda leaf: leaf[0], gradients)
    updates, state = all_steps(novoclip.uclip(rule), gradients, params)
    for name, leaf in gradients.items():
        entered, left = (np.asarray(each, np.float64) for each in (leaf, updates[name]))
        held = np.cumsum(entered - left, axis=0)
        wide = state.carry[name].dtype
        assert updates[name].dtype == leaf.dtype
        assert wide == (jnp.float64 if dtype == "float64" else jnp.float32)
        # Each step rounds twice, to a part of what is held.
        bound = 400 * float(jnp.finfo(wide).eps) * (np.max(np.abs(held)) + np.max(np.abs(entered)))
        np.testing.assert_allclose(state.carry[name], held[-1], rtol=0, atol=bound)


@jax.jit
def all_steps_by_value(gradients, limit):
    return all_steps(novoclip.uclip(novoclip.clip_by_value(limit)), gradients, jnp.zeros(()))


@given(st.lists(st.integers(-80, 80), min_size=1, max_size=40), st.sampled_from([0.125, 1.0, 3.0]))
def test_uclip_by_value_is_exact_and_comes_back_in_portions(eighths, limit):
    gradients = np.zeros(200, np.float32)
    gradients[: len(eighths)] = np.array(eighths) / 8
    updates, state = all_steps_by_value(gradients, limit)
    carry = 0.0
    for gradient, update in zip(gradients, np.asarray(updates), strict=True):
        total = gradient + carry
        assert update == np.clip(total, -limit, limit)
        carry = total - update
    assert float(state.carry) == carry == gradients.sum() - updates.sum()


def test_uclip_removes_the_bias_of_clipping():
    # f = x^2/2 with noise +9 (a tenth of the steps) or -1: clipped at 2, 0.1 * 2 + 0.9 (x - 1) = 0 at 7/9.
    noise = np.where(np.random.default_rng(0).random((20_000, 64)) < 0.1, 9.0, -1.0).astype(np.float32)

    def settled(rule):
        def step(carry, noise):
            update, state = rule.update(carry[0] + noise, carry[1])
            point = carry[0] - 0.005 * update
            return (point, state), point

        start = jnp.zeros(noise.shape[1])
        return lax.scan(step, (start, rule.init(start)), noise)[1]

    clip = novoclip.clip_by_value(2.0)
    both = jax.jit(lambda: (settled(clip), settled(novoclip.uclip(clip))))()
    clipped, kept = (np.mean(points[10_000:]) for points in both)
    assert abs(clipped - 7 / 9) < 0.02
    assert abs(kept) < 0.02


@pytest.mark.parametrize("wrapper", [novoclip.uclip, novoclip.clip21])
@some_rules
def test_steps_that_are_not_finite_leave_no_trace(wrapper, rule):
    bad = [3, 11, 12]
    gradients = with_bad(tree("float32", 20), bad)
    params, rule = tree("float32"), wrapper(rule)
    update = jax.jit(rule.update)

    def one_by_one(gradients):
        state, found = rule.init(params), []
        for step in range(len(gradients["bias"])):
            updates, state = update({name: leaf[step] for name, leaf in gradients.items()}, state, params)
            found.append(updates)
        return jax.tree.map(lambda *rows: np.stack(rows), *found), state

    (updates, state), (wanted, expected) = one_by_one(gradients), one_by_one(without(gradients, bad))
    for leaf in updates.values():
        assert not np.any(leaf[np.array(bad)])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), without(updates, bad), wanted)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        (state.carry, state.inner),
        (expected.carry, expected.inner),
    )
    assert (int(state.steps), int(state.nonfinite), int(expected.steps)) == (20, 3, 17)
    assert int(novoclip.metrics(state)["carry/nonfinite"]) == 3


@pytest.mark.parametrize("rule", [novoclip.clip_by_value(1.0), novoclip.clip_by_global_norm(1.0)])
def test_uclip_goes_on_after_finite_gradients_whose_sum_is_not(rule):
    rule = compiled(novoclip.uclip(rule))
    state = rule.init(np.zeros(2, np.float32))
    for size in (3e38, 3e38, -3e38, -3e38, 0.1):
        updates, state = rule.update(np.float32([size, size]), state)
        assert np.all(np.isfinite(state.carry))
    assert np.any(updates)


@some_rules
def test_clip21_is_its_formula(rule):
    rule = compiled(rule)
    gradients, params = tree("float32", 12), tree("float32")
    updates, state = jax.device_get(all_steps(novoclip.clip21(rule), gradients, params))
    estimate, rule_state = jax.tree.map(np.zeros_like, params), rule.init(params)
    for step in range(12):
        moved = jax.tree.map(lambda leaf, e, step=step: leaf[step] - e, gradients, estimate)
        moved, rule_state = rule.update(moved, rule_state, params)
        estimate = jax.tree.map(np.add, estimate, moved)
        for name in params:
            np.testing.assert_allclose(updates[name][step], estimate[name], rtol=1e-4, atol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), state.carry, estimate)


def on_two_workers(step, form):
    mapped = jax.jit(jax.vmap(step, axis_name="workers")) if form == "vmap" else jax.pmap(step, axis_name="workers")
    return jax.device_get(mapped(np.arange(2)))


def slope_of(worker, x):
    return jnp.where(worker == 0, 3 * (x - 3), x + 3)


@pytest.mark.parametrize("form", ["vmap", "pmap"])
def test_clip21_finds_the_optimum_where_clipped_gradients_cancel_out(form):
    rules = {
        "clipped": novoclip.clip_by_value(1.0),
        "followed": novoclip.clip21(novoclip.clip_by_value(1.0), axis_name="workers"),
    }
    found = {}
    for name, rule in rules.items():

        def train(worker, rule=rule):
            def step(carry, _):
                updates, state = rule.update(slope_of(worker, carry[0]), carry[1])
                return (carry[0] - 0.1 * lax.pmean(updates, "workers"), state), updates

            zero = 0.0 * worker
            (x, _), updates = lax.scan(step, (zero, rule.init(zero)), length=200)
            return x, updates

        x, updates = on_two_workers(train, form)
        assert x[0] == x[1]
        found[name] = float(x[0])
        if name == "followed":
            np.testing.assert_array_equal(updates[0], updates[1])
    assert found["clipped"] == 0.0
    np.testing.assert_allclose(found["followed"], 1.5, atol=1e-5)


def test_workers_take_the_mean_of_what_they_estimate():
    rule = novoclip.clip21(novoclip.clip_by_value(2.0), axis_name="workers")
    updates = on_two_workers(lambda worker: rule.update(1.0 + 5.0 * worker, rule.init(jnp.zeros(())))[0], "vmap")
    np.testing.assert_array_equal(updates, [1.5, 1.5])  # of 1, and of 6 that were clipped to 2


@pytest.mark.parametrize("form", ["vmap", "pmap"])
def test_nan_on_one_worker_is_skipped_by_all(form):
    rule = novoclip.clip21(novoclip.autoclip(50.0, window=3), axis_name="workers")

    def train(worker):
        state = rule.init(jnp.zeros(2))
        _, state = rule.update(jnp.array([1.0, 2.0]) + worker, state)
        updates, after = rule.update(jnp.where(worker == 1, jnp.nan, 1.0) * jnp.ones(2), state)
        return updates, state, after

    updates, state, after = on_two_workers(train, form)
    assert not np.any(updates)
    assert after.nonfinite.tolist() == [1, 1]
    equal((after.carry, after.inner), (state.carry, state.inner))


@functools.cache
def clipped_steps(rule):
    return jax.device_get(all_steps(rule, tree("float32", 12, scale=2.0), tree("float32")))


@pytest.mark.parametrize(("steps", "ramp"), [(0, 0), (0, 3), (4, 0), (3, 4), (50, 2)])
@some_rules
def test_start_after_blends_by_its_shares(rule, steps, ramp):
    gradients, params = tree("float32", 12, scale=2.0), tree("float32")
    updates, state = jax.device_get(all_steps(novoclip.start_after(rule, steps, ramp=ramp), gradients, params))
    clipped, rule_state = clipped_steps(rule)
    shares = np.clip((np.arange(12) - steps + 1) / (ramp + 1), 0, 1)
    for name, leaf in gradients.items():
        for step, share in enumerate(shares):
            before, after = leaf[step], clipped[name][step]
            expected = after if share == 1 else before if share == 0 else (1 - share) * before + share * after
            rtol = 0 if share == 0 else 2e-6
            np.testing.assert_allclose(updates[name][step], expected, rtol=rtol, atol=rtol, err_msg=f"{step} {name}")
    # It has learned all along.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state.inner, rule_state)
    assert int(state.steps) == 12


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_before_the_start_numbers_pass_bit_for_bit_but_not_nan(dtype):
    rule = compiled(novoclip.start_after(novoclip.clip_by_global_norm(1.0), 2))
    finite = np.array([-0.0, 3e38, 1e-30, 3.0], jnp.dtype(dtype))
    updates, state = rule.update(finite, rule.init(finite))
    assert np.asarray(updates).tobytes() == np.asarray(finite).tobytes()
    bad = np.array([np.nan, 1.0, np.inf, -np.inf], jnp.dtype(dtype))
    updates, _ = rule.update(bad, state)
    np.testing.assert_array_equal(updates, [0, 1, 0, 0])
    assert updates.dtype == jnp.dtype(dtype)
    rule = compiled(novoclip.start_after(novoclip.clip_by_global_norm(1.0, nonfinite="propagate"), 2))
    assert np.asarray(rule.update(bad, rule.init(bad))[0]).tobytes() == np.asarray(bad).tobytes()


@pytest.mark.parametrize("name", ["steps", "ramp"])
def test_a_start_that_is_no_count_is_refused_by_name(name):
    rule = novoclip.clip_by_value(1.0)
    for wrong, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)):
        with pytest.raises(error, match=name):
            novoclip.start_after(rule, **{"steps": 1, name: wrong})


def test_a_start_may_be_as_good_as_never():
    numbers = (2**31 - 1, 10**12)
    arguments = [each for number in numbers for each in ({"steps": number}, {"steps": 1, "ramp": number})]
    rules = [novoclip.start_after(novoclip.clip_by_value(1.0), **each) for each in arguments]
    start = np.zeros(1, np.float32)
    steps = jax.jit(lambda leaf: [rule.update(leaf, rule.init(start))[0] for rule in rules])
    for each, updates in zip(arguments, steps(np.float32([3.0])), strict=True):
        np.testing.assert_array_equal(updates, [3.0], err_msg=str(each))


@pytest.mark.parametrize("wrapper", [novoclip.uclip, novoclip.clip21, novoclip.per_example])
def test_what_is_no_rule_is_refused(wrapper):
    for wrong in (1.0, None, jnp.ones(2)):
        with pytest.raises(TypeError, match="inner must be a GradientTransformation"):
            wrapper(wrong)


def test_gradients_of_no_examples_or_of_one_batch_are_refused():
    rule = compiled(novoclip.per_example(novoclip.clip_by_global_norm(1.0)))
    params = {"a": np.zeros(4, np.float32), "b": np.zeros((4, 2), np.float32)}
    state = rule.init(params)
    with pytest.raises(ValueError, match=r"'a' has shape \(4,\), and its parameter \(4,\)"):
        rule.update(params, state, params)
    with pytest.raises(ValueError, match=r"one leading axis of examples; got leaves with \{'a': 3, 'b': 4\} of them"):
        rule.update({"a": np.zeros((3, 4)), "b": np.zeros((4, 4, 2))}, state)
    examples = jax.tree.map(lambda leaf: leaf[None], params)
    updates, _ = rule.update(examples, state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    frozen, _ = rule.update(examples | {"b": None}, rule.init(params | {"b": None}), params)
    assert frozen["b"] is None


def norms_of(gradients):
    """The norm of each example's gradient in NumPy."""
    return np.sqrt(
        sum(np.sum(np.asarray(x, np.float64) ** 2, axis=tuple(range(1, x.ndim))) for x in gradients.values())
    )


def weighted(gradients, weights):
    return {name: np.tensordot(weights, np.asarray(leaf, np.float64), 1) for name, leaf in gradients.items()}


def near(got, wanted, rtol=1e-12):
    assert got.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_allclose(got[name], leaf, rtol=rtol, atol=rtol)


@pytest.mark.usefixtures("x64")
def test_published_ways_to_clip_examples():
    gradients, norms = tree("float64", 7), norms_of(tree("float64", 7))
    published = (
        (novoclip.clip_by_global_norm(2.0), np.minimum(1, 2 / norms)),  # Abadi et al.
        (novoclip.normalize_by_norm(2.0), 2 / norms),  # AUTO-V
        (novoclip.clip_by_global_norm(0.01, shape="smooth"), 0.01 / (norms + 0.01)),  # gamma times AUTO-S
        (novoclip.clip_by_norm(2.0, shape="drop", per="tree"), norms <= 2),
    )
    rules = [novoclip.per_example(rule) for rule, _ in published]
    step = jax.jit(lambda gradients: [rule.update(gradients, rule.init(tree("float64")))[0] for rule in rules])
    for updates, (_, factors) in zip(step(gradients), published, strict=True):
        near(updates, weighted(gradients, factors / 7))


def test_the_mean_of_clipped_examples_is_optaxs():
    theirs = optax.contrib.differentially_private_aggregate(2.0, 0.0, 0)
    ours = novoclip.per_example(novoclip.clip_by_global_norm(2.0))
    gradients, params = tree("float32", 7), tree("float32")
    expected, updates = jax.jit(
        lambda gradients: [rule.update(gradients, rule.init(params), params)[0] for rule in (theirs, ours)]
    )(gradients)
    near(updates, expected, rtol=1e-6)


@jax.jit
def steps_of_a_quantile(gradients, quantile):
    rule = novoclip.per_example(novoclip.clip_by_running_quantile(quantile, initial=0.1))
    return all_steps(rule, gradients, tree("float64"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_the_tracked_quantile_is_that_of_the_batch(quantile):
    batch = tree("float64", 101)
    gradients = jax.tree.map(lambda leaf: np.stack([leaf] * 50), batch)
    updates, state = jax.device_get(steps_of_a_quantile(gradients, quantile))
    norms, limit = norms_of(batch), 0.1
    for step in range(50):
        near(
            jax.tree.map(lambda leaf, step=step: leaf[step], updates),
            weighted(batch, np.minimum(1, limit / norms) / 101),
        )
        last, limit = limit, limit * np.exp(-0.2 * (np.mean(norms <= limit) - quantile))
    np.testing.assert_allclose(np.exp(state.limit_state.estimate), limit, rtol=1e-12)
    np.testing.assert_allclose(state.limits, last, rtol=1e-12)
    np.testing.assert_allclose(state.fraction, np.mean(norms > last), rtol=1e-6)
    np.testing.assert_allclose(limit, np.quantile(norms, quantile), rtol=0.05)


STATELESS = {name: RULES[name] for name in ("global norm", "per tensor, smooth", "value")}


def with_example(gradients, number, value):
    """The gradients with one example whose numbers are all this value."""
    changed = jax.tree.map(np.copy, gradients)
    for leaf in changed.values():
        leaf[number] = value
    return changed


@pytest.mark.parametrize("rule", STATELESS.values(), ids=STATELESS.keys())
def test_a_bad_example_counts_as_zeros_and_leaves_the_others_alone(rule):
    gradients, params = tree("float32", 5), tree("float32")
    wrapped = novoclip.per_example(rule)
    state, update = wrapped.init(params), jax.jit(wrapped.update)
    zeroed, _ = update(with_example(gradients, 2, 0), state, params)
    for bad in (np.nan, np.inf):
        # Per element, infinity is clipped.
        more = 0.5 / 5 if rule is STATELESS["value"] and bad == np.inf else 0
        wanted = {name: np.asarray(leaf) + np.float32(more) for name, leaf in zeroed.items()}
        near(update(with_example(gradients, 2, bad), state, params)[0], wanted, rtol=1e-6)


MEMORIES = {
    "quantile": novoclip.clip_by_running_quantile(0.5, initial=0.1),
    "quantile from the first norm": novoclip.clip_by_running_quantile(0.5),
    "autoclip": novoclip.autoclip(50.0, window=4),
    "deviation": novoclip.clip_by_deviation(window=4, warmup=2),
    "adagc": novoclip.adagc(warmup=2),
}


@pytest.mark.parametrize("bad", [0.0, jnp.nan], ids=["zeros", "nan"])
@pytest.mark.parametrize("rule", MEMORIES.values(), ids=MEMORIES.keys())
def test_examples_of_zeros_or_nan_do_not_stop_the_learning(rule, bad):
    wrapped = novoclip.per_example(rule)
    usual = np.float32([[3.0, 4.0], [6.0, 8.0], [1.5, 2.0], [3.0, 4.0]])
    state, update = wrapped.init(np.zeros(2, np.float32)), jax.jit(wrapped.update)
    for step in range(40):
        gradients = usual.copy()
        gradients[step % 4] = bad
        _, state = update(gradients, state)
    spike, _ = update(np.full((4, 2), 1e6, np.float32), state)
    assert 1 < np.linalg.norm(spike) < 100


@some_rules
def test_the_order_of_examples_does_not_matter_and_equal_ones_are_one(rule):
    gradients, params = tree("float32", 6), tree("float32")
    wrapped = novoclip.per_example(rule)
    state, update = wrapped.init(params), jax.jit(wrapped.update)
    one, of_one = update(gradients, state, params)
    other, after = update(jax.tree.map(lambda leaf: leaf[::-1], gradients), state, params)
    near(one, other, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), of_one, after)
    alone, of_one = jax.jit(rule.update)(params, state, params)
    same, after = update(jax.tree.map(lambda leaf: np.stack([leaf] * 6), params), state, params)
    near(same, alone, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), after, of_one)


@pytest.mark.parametrize("rule", STATELESS.values(), ids=STATELESS.keys())
def test_microbatches_are_the_whole_batch(rule):
    gradients, params = tree("float32", 12), tree("float32")
    whole = optax.chain(novoclip.per_example(rule), optax.sgd(0.1))
    wanted, _ = jax.jit(lambda gradients: whole.update(gradients, whole.init(params), params))(gradients)
    parts = optax.chain(novoclip.per_example(rule), optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation())
    state, update = parts.init(params), jax.jit(parts.update)
    for start in (0, 4, 8):
        updates, state = update(jax.tree.map(lambda leaf, s=start: leaf[s : s + 4], gradients), state, params)
        assert np.any(updates["bias"]) == (start == 8)
    near(updates, wanted, rtol=1e-6)


def test_gradients_of_a_flax_model_for_each_example():
    model = linen.Sequential([linen.Dense(4), linen.relu, linen.Dense(1)])
    generator = np.random.default_rng(0)
    inputs, targets = (generator.normal(size=(8, size)).astype(np.float32) for size in (3, 1))
    params = jax.jit(model.init)(jax.random.key(0), inputs)
    loss = lambda params, x, y: jnp.sum((model.apply(params, x) - y) ** 2)  # noqa: E731
    optimizer = optax.chain(novoclip.per_example(novoclip.clip_by_global_norm(0.5)), optax.sgd(1.0))

    @jax.jit
    def step(params):
        slopes = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, inputs, targets)
        return optimizer.update(slopes, optimizer.init(params), params)

    updates, state = step(params)
    slope_of_one = jax.jit(jax.grad(loss))
    expected = jax.tree.map(np.zeros_like, params)
    norms = []
    for x, y in zip(inputs, targets, strict=True):
        slope = jax.device_get(slope_of_one(params, x, y))
        norms.append(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(slope))))
        expected = jax.tree.map(lambda e, s, n=norms[-1]: e - min(1, 0.5 / n) * np.asarray(s) / 8, expected, slope)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), updates, expected)
    found = novoclip.metrics(state)
    np.testing.assert_allclose(found["clip/norm"], np.mean(norms), rtol=1e-5)
    np.testing.assert_allclose(found["clip/fraction"], np.mean(np.array(norms) > 0.5), rtol=1e-6)
    assert int(found["clip/steps"]) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_mean_of_many_halves_is_taken_in_float32(dtype):
    gradients = np.full((5000, 2), 3.0, jnp.dtype(dtype))
    rule = compiled(novoclip.per_example(novoclip.clip_by_value(60000.0 if dtype == "float16" else 1e30)))
    updates, _ = rule.update(gradients, rule.init(np.zeros(2, jnp.dtype(dtype))))
    np.testing.assert_array_equal(updates, gradients[0])
    assert updates.dtype == jnp.dtype(dtype)


def test_gradients_without_an_axis_of_examples_are_refused():
    rule = novoclip.per_example(novoclip.clip_by_value(1.0))
    with pytest.raises(TypeError, match="leading axis of examples"):
        rule.update({"a": jnp.ones((2, 3)), "b": jnp.ones(())}, rule.init({"a": jnp.ones(3), "b": jnp.ones(())}))
