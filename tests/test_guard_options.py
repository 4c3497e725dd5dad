"""Guards that look at some leaves only, and the loss beside the norm."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled

PARAMS = {"train": np.zeros(2, np.float32), "frozen": {"a": np.zeros(2, np.float32), "b": np.zeros((), np.float32)}}
MASK = {"train": True, "frozen": False}
LABELS = {"train": "t", "frozen": "f"}
ONES = jax.tree.map(np.ones_like, PARAMS)


def by_path(tree):
    return {name: name == "train" for name in tree}


def partition(train):
    return optax.partition({"t": train, "f": optax.set_to_zero()}, LABELS)


@pytest.mark.parametrize("mask", [MASK, by_path, {"train": True, "frozen": {"a": False, "b": False}}])
def test_frozen_leaves_count_neither_for_the_norm_nor_for_nan(mask):
    # The global norm of Optax sees all leaves, and would make NaN of every gradient.
    inner = optax.chain(optax.clip_by_global_norm(100.0), partition(optax.sgd(1.0)))
    for make in (novoclip.skip_spikes, novoclip.guard_nonfinite):
        guard = make(inner, mask=mask)
        state, update = guard.init(PARAMS), jax.jit(guard.update)
        for frozen in (*[1.0] * 10, 1000.0, np.nan, np.inf):
            entering = ONES | {"frozen": {"a": np.float32([frozen, 1.0]), "b": np.ones((), np.float32)}}
            updates, state = update(entering, state, PARAMS)
            factor = 1.0 if not np.isfinite(frozen) else min(1.0, 100 / np.sqrt(frozen**2 + 4))
            np.testing.assert_allclose(updates["train"], [-factor, -factor], rtol=1e-6)
            assert not np.any(updates["frozen"]["a"])
        novoclip.check(state, PARAMS, max_in_a_row=1)
        assert state.leaf_steps.tolist() == [0, 0, 0]
        if make is novoclip.skip_spikes:
            np.testing.assert_allclose(state.norm, np.sqrt(2), rtol=1e-6)
        updates, state = update(ONES | {"train": np.float32([np.nan, 1.0])}, state, PARAMS)
        assert not np.any(updates["train"])
        # The names are those of all parameters; "frozen/a", "frozen/b" and "train", in this order.
        assert state.leaf_steps.tolist() == [0, 0, 1]
        assert novoclip.locate_nonfinite(state, PARAMS) == "train: not finite in 1 of 14 steps, last at step 14"


def test_hidden_leaves_reach_the_optimizer_as_they_are():
    mask = {"train": False, "frozen": {"a": True, "b": True}}
    bad = {"train": np.float32([1e30, np.nan]), "frozen": ONES["frozen"] | {"b": np.array(np.nan, np.float32)}}
    for policy, b in (("zero_leaf", 0.0), ("zero_element", 0.0)):
        guard = compiled(novoclip.guard_nonfinite(optax.identity(), policy=policy, mask=mask))
        updates, _ = guard.update(bad, guard.init(PARAMS), PARAMS)
        np.testing.assert_array_equal(updates["train"], np.float32([1e30, 0.0]))
        np.testing.assert_array_equal(updates["frozen"]["a"], [1.0, 1.0])
        np.testing.assert_array_equal(updates["frozen"]["b"], b)


def test_a_released_spike_is_clipped_in_the_leaves_that_count():
    guard = compiled(novoclip.skip_spikes(optax.identity(), novoclip.limits.constant(1.0), max_in_a_row=1, mask=MASK))
    entering = {"train": np.float32([3.0, 4.0]), "frozen": jax.tree.map(lambda one: 7 * one, ONES["frozen"])}
    _, state = guard.update(entering, guard.init(PARAMS))
    updates, state = guard.update(entering, state)
    np.testing.assert_allclose(updates["train"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(updates["frozen"]["a"], [7, 7])
    assert int(state.released) == 1


@pytest.mark.parametrize("make", [novoclip.skip_spikes, novoclip.guard_nonfinite])
def test_masks_that_do_not_fit_are_refused(make):
    for wrong, error in (({"train": True}, ValueError), (lambda _: {"train": 1, "frozen": 0}, TypeError)):
        with pytest.raises(error, match="mask"):
            make(optax.sgd(0.1), mask=wrong).init(PARAMS)
    with pytest.raises(ValueError, match="mask selects no leaf"):
        make(optax.sgd(0.1), mask=dict.fromkeys(MASK, False)).init(PARAMS)


def test_static_leaves_and_missing_gradients_pass_under_a_mask():
    params = PARAMS | {"act": jax.nn.relu, "name": "mlp", "none": None, "still": np.ones(3, np.float32)}
    mask = {"train": True, "frozen": False, "act": False, "name": False, "none": None, "still": True}
    entering = ONES | {"act": None, "name": None, "none": None, "still": None}
    for make in (novoclip.skip_spikes, novoclip.guard_nonfinite):
        for chosen in (None, mask):
            guard = make(optax.identity(), mask=chosen)
            state = guard.init(params)
            step = jax.jit(lambda train, state, g=guard: g.update(entering | {"train": train}, state, params))
            updates, state = step(ONES["train"], state)
            np.testing.assert_array_equal(updates["train"], [1, 1])
            updates, state = step(np.float32([np.inf, 0.0]), state)
            assert novoclip.locate_nonfinite(state, params) == "train: not finite in 1 of 2 steps, last at step 2"


@functools.partial(jax.jit, static_argnums=0)
def skipped(guard, norms, values):
    def step(state, pair):
        _, new = guard.update(pair[0][None], state, value=pair[1])
        return new, new.skipped > state.skipped

    return jax.lax.scan(step, guard.init(jnp.zeros(1)), (norms, values))[1]


def decisions(guard, norms, values):
    """Which steps are skipped."""
    return np.asarray(skipped(guard, norms, values))


def test_norm_and_loss_have_a_limit_each():
    norms, values = np.ones(40, np.float32), np.full(40, 50.0, np.float32)
    norms[20], values[30] = 11.0, 61.0
    sgd, ten, sixty = optax.sgd(1.0), novoclip.limits.constant(10.0), novoclip.limits.constant(60.0)
    ignoring = novoclip.skip_spikes(sgd, ten, value_limit=False)
    for guard, expected in (
        (novoclip.skip_spikes(sgd, ten), [20, 30]),
        (novoclip.skip_spikes(sgd, ten, value_limit=sixty), [20, 30]),
        (novoclip.skip_spikes(sgd, novoclip.limits.constant(1e9), value_limit=sixty), [30]),
        (ignoring, [20]),
        (novoclip.skip_spikes(sgd, value_limit=novoclip.limits.constant(1e9)), [20]),
    ):
        np.testing.assert_array_equal(np.flatnonzero(decisions(guard, norms, values)), expected)
    values[25] = np.nan
    np.testing.assert_array_equal(np.flatnonzero(decisions(ignoring, norms, values)), [20])


SIGNED = {
    "default": None,
    "limits.deviation": novoclip.limits.deviation(6.0, warmup=8, eps=0.01),
    "clipped": novoclip.limits.deviation(6.0, warmup=8, eps=0.01, learn="clipped"),
    "limits.zclip": novoclip.limits.zclip(6.0, warmup=8),
    "limits.zclip by mean": novoclip.limits.zclip(6.0, warmup=8, mode="mean"),
    "tighter": novoclip.limits.tighter(novoclip.limits.constant(1e6), novoclip.limits.zclip(6.0, warmup=8)),
}


@functools.cache
def on_the_loss(limit):
    return novoclip.skip_spikes(optax.sgd(1.0), value_limit=limit)


@pytest.mark.parametrize("limit", SIGNED.values(), ids=SIGNED.keys())
@pytest.mark.parametrize("level", [-100.0, -1.0, 0.0, 100.0])
def test_losses_of_any_sign_are_judged_alike(level, limit):
    # Exact in float32, so that the shifted losses differ by the level alone.
    values = level + np.round(64 * np.random.default_rng(0).uniform(-1, 1, 200)).astype(np.float32) / 64
    values[[8, 100, 199]] = level + 600.0
    guard = on_the_loss(limit)
    np.testing.assert_array_equal(np.flatnonzero(decisions(guard, np.ones(200, np.float32), values)), [8, 100, 199])


def test_losses_of_zero_are_losses():
    values = np.zeros(30, np.float32)
    values[10:20] = 0.004
    values[25] = 1.0
    guard = novoclip.skip_spikes(optax.sgd(1.0))
    np.testing.assert_array_equal(np.flatnonzero(decisions(guard, np.ones(30, np.float32), values)), [25])


def test_limits_that_only_work_for_norms_are_refused_for_the_loss():
    own = novoclip.Limit(lambda norms: (), lambda norms, state, *_, **extra: (2 * norms, state))
    for wrong in (
        novoclip.limits.running_mean(3.0),
        novoclip.limits.running_quantile(0.99),
        novoclip.limits.second_moment(3.0),
        novoclip.limits.zclip(6.0, clip_factor=0.5),
        novoclip.limits.tighter(novoclip.limits.constant(1.0), novoclip.limits.running_mean(3.0)),
        own,
    ):
        with pytest.raises(ValueError, match="value_limit must be a Limit that works for losses below 0 too"):
            novoclip.skip_spikes(optax.sgd(1.0), value_limit=wrong)
    novoclip.skip_spikes(optax.sgd(1.0), value_limit=own._replace(signed=True))


@pytest.mark.parametrize(
    "value",
    [
        2,
        2.0,
        10**12,
        np.int8(2),
        np.uint64(2),
        np.float16(2),
        np.float64(2),
        np.array(2),
        jnp.int32(2),
        jnp.bfloat16(2),
    ],
)
def test_a_loss_may_be_any_real_scalar(value):
    guard = novoclip.skip_spikes(optax.sgd(1.0), value_limit=novoclip.limits.constant(float(value)))
    state = guard.init(jnp.ones(2))
    _, state = guard.update(jnp.ones(2), state, value=value)
    assert int(state.skipped) == 0
    _, state = guard.update(jnp.ones(2), state, value=2 * value)
    assert int(state.skipped) == 1


def test_a_loss_under_another_name_is_warned_of():
    for options, extra, warns in (
        ({}, {"loss": jnp.float32(1.0)}, True),
        ({}, {"loss": jnp.float32(1.0), "value": None}, True),
        ({}, {"loss": jnp.float32(1.0), "value": jnp.float32(1.0)}, False),
        ({"value_limit": False}, {"loss": jnp.float32(1.0)}, False),
    ):
        guard = novoclip.skip_spikes(optax.sgd(1.0), **options)
        params = np.ones(2, np.float32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jax.eval_shape(guard.update, params, guard.init(params), **extra)
        assert [str(warning.message)[:26] for warning in caught] == ["update was given loss=, whi"[:26]] * warns
