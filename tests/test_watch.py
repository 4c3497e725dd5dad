"""`watch` measures what NumPy measures, when it is due, and changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from novoclip.wrappers.histograms import EDGES
from tests.steps import apply_updates, compiled

ALL = ("gradients", "updates", "params")
KERNEL = np.ones((2, 3), np.float32)
PARAMS = {"decoder": {"bias": np.zeros(3, np.float32), "kernel": KERNEL}, "head": np.float32([3.0, 4.0])}


def gradients(seed, size=1.0):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (size * generator.normal(size=leaf.shape)).astype(np.float32), PARAMS)


def named(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64) for path, leaf in found
    }


def run(optimizer, sizes, *, jit=True, losses=None):
    state, params = optimizer.init(PARAMS), PARAMS
    update = jax.jit(optimizer.update) if jit else optimizer.update
    steps = []
    for seed, size in enumerate(sizes):
        extra = {} if losses is None else {"value": np.float32(losses[seed])}
        given = gradients(seed, size)
        updates, state = update(given, state, params, **extra)
        steps.append((given, updates, params))
        params = apply_updates(params, updates)
    return steps, state


@pytest.mark.parametrize("jit", [True, False])
def test_figures_are_those_of_numpy_at_the_step_that_was_due(jit):
    optimizer = novoclip.watch(optax.adam(0.1), every=3, of=ALL)
    steps, state = run(optimizer, [1.0] * 5, jit=jit)
    report = novoclip.metrics(state, PARAMS)
    assert int(report["watch/seen_at"]) == 4  # steps 1 and 4 of 5
    for tree, values in zip(("gradients", "updates", "params"), map(named, steps[3]), strict=True):
        for name, leaf in values.items():
            expected = {"norm": np.linalg.norm(leaf), "rms": np.sqrt(np.mean(leaf**2)), "max": np.abs(leaf).max()}
            for figure, number in expected.items():
                np.testing.assert_allclose(report[f"watch/{tree}/{figure}/{name}"], number, rtol=1e-5, err_msg=name)
        largest = max(np.linalg.norm(leaf) for leaf in values.values())
        np.testing.assert_allclose(report[f"watch/{tree}/norm_max"], largest, rtol=1e-5)
    _, updates, params = map(named, steps[3])
    for name, leaf in updates.items():
        expected = np.linalg.norm(leaf) / np.linalg.norm(params[name])
        np.testing.assert_allclose(report[f"watch/ratio/{name}"], expected, rtol=1e-5)


def test_updates_and_the_state_inside_are_those_without():
    inner = novoclip.protect(optax.adam(0.1))
    steps, state = run(novoclip.watch(inner, every=2, of=ALL, moments=True, histogram=True), [1.0, 9.0, jnp.nan, 1.0])
    alone, alone_state = run(inner, [1.0, 9.0, jnp.nan, 1.0])
    for (_, one, _), (_, other, _) in zip(steps, alone, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    jax.tree.map(np.testing.assert_array_equal, state.inner, alone_state)


def test_histograms_count_every_element_once():
    optimizer = novoclip.watch(optax.sgd(1.0), histogram=True)
    sizes = np.float32([0.0, 1e-13, 0.02, -0.02, 2.0, 5e4, np.inf, np.nan])
    params = {"a": np.zeros(8, np.float32)}
    _, state = jax.jit(lambda sizes: optimizer.update({"a": sizes}, optimizer.init(params), params))(sizes)
    counts = novoclip.histograms(state, params)["gradients/a"]
    assert counts.sum() == 8
    finite = np.abs(np.asarray(sizes, np.float64)[:6])
    expected = np.histogram(finite, [0.0, *EDGES, np.inf])[0]
    expected[-1] += 2
    np.testing.assert_array_equal(counts, expected)


def test_moments_are_measured_on_request():
    optimizer = novoclip.watch(optax.adam(0.1), every=1, of="gradients", moments=True)
    steps, state = run(optimizer, [1.0])
    report = novoclip.metrics(state, PARAMS)
    np.testing.assert_allclose(
        report["watch/mu/norm/head"], 0.1 * np.linalg.norm(named(steps[0][0])["head"]), rtol=1e-5
    )
    assert not any("updates" in name for name in report)


def test_layers_of_a_stack_and_groups_have_names():
    per = novoclip.groups(lambda path, _: path.split("/")[0])
    _, state = run(novoclip.watch(optax.sgd(1.0), per=per, of=ALL), [1.0])
    report = novoclip.metrics(state, PARAMS, per=per)
    assert {name for name in report if name.startswith("watch/ratio/")} == {"watch/ratio/decoder", "watch/ratio/head"}
    assert "watch/ratio/decoder" not in novoclip.metrics(state, PARAMS, per=per, only="head")


def spike_shares(norms):
    """The definition: above the mean of up to 128 norms before it plus 6 standard deviations, once there are 8."""
    flags = []
    for i, norm in enumerate(norms):
        before = np.asarray(norms[max(0, i - 128) : i])
        before = before[np.isfinite(before)]
        limit = before.mean() + 6 * before.std() if before.size >= 8 else np.inf
        flags.append(not np.isfinite(norm) or norm > limit)
    return np.mean(flags), np.mean(flags[-128:])


def test_the_spike_score_is_the_share_of_its_definition():
    generator = np.random.default_rng(0)
    norms = np.exp(0.1 * generator.normal(size=200)).astype(np.float32)
    norms[[20, 60, 190]] *= 50
    norms[100] = np.nan
    optimizer = novoclip.watch(optax.chain(novoclip.record(), optax.sgd(0.1)), every=1000, of=["gradients"])

    def step(state, norm):
        _, state = optimizer.update({"a": norm[None]}, state)
        return state, None

    state, _ = jax.jit(lambda rows: jax.lax.scan(step, optimizer.init({"a": jnp.zeros(1)}), rows))(norms)
    report = novoclip.metrics(state)
    whole, recent = spike_shares(norms)
    assert whole > 0
    np.testing.assert_allclose(report["watch/spike_score"], whole, rtol=1e-5)
    np.testing.assert_allclose(report["watch/spike_score_128"], recent, rtol=1e-5)


def test_losses_are_judged_too_and_where_neither_is_known_nothing_is():
    losses = [1.0, 1.1] * 10 + [50.0]
    _, state = run(novoclip.watch(optax.sgd(0.1)), [1.0] * 21, losses=losses)
    report = novoclip.metrics(state)
    assert (int(report["watch/judged"]), int(report["watch/spikes"])) == (21, 1)
    _, state = run(novoclip.watch(optax.sgd(0.1)), [1.0] * 3)
    assert int(novoclip.metrics(state)["watch/judged"]) == 0


def judged_and_spikes(optimizer, norms):
    params = {"a": np.ones(2, np.float32)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for norm in norms:
        _, state = update({"a": np.full(2, norm, np.float32)}, state, params)
    report = novoclip.metrics(state)
    return int(report["watch/judged"]), int(report["watch/spikes"])


STORM = [1.0, 1.1] * 10 + [1000.0, 1.0, jnp.nan]


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (novoclip.protect(optax.chain(novoclip.clip_by_global_norm(1.0), optax.sgd(0.1))), (23, 2)),
        (optax.chain(novoclip.clip_by_global_norm(1.0), optax.sgd(0.1)), (23, 2)),
        (novoclip.adam(0.1, clip=novoclip.clip_by_global_norm(1.0)), (23, 2)),
        (novoclip.guard_nonfinite(optax.chain(novoclip.record(), optax.sgd(0.1))), (23, 2)),
        # Of these, no norm is that of the whole gradient.
        (optax.chain(novoclip.clip_by_value(1.0), optax.sgd(0.1), novoclip.record()), (0, 0)),
        (optax.masked(novoclip.record(), {"a": True}), (0, 0)),
        (optax.partition({"x": novoclip.record()}, {"a": "x"}), (0, 0)),
    ],
)
def test_the_norm_that_is_judged_is_that_of_the_whole_gradient(inner, expected):
    assert judged_and_spikes(novoclip.watch(inner), STORM) == expected


def test_a_loss_that_is_not_looked_at_is_told():
    optimizer = novoclip.watch(optax.sgd(0.1))
    with pytest.warns(UserWarning, match="give the loss as value="):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, loss=3.0)


@pytest.mark.parametrize(
    "dtypes", [(jnp.float32, jnp.float64), (jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float32)]
)
@pytest.mark.usefixtures("x64")
def test_the_state_keeps_its_dtypes_whatever_the_gradients_have(dtypes):
    optimizer = novoclip.watch(optax.sgd(0.1), of=ALL, histogram=True)
    params, given = ({"w": np.ones(3, dtype)} for dtype in dtypes)
    first = optimizer.init(params)
    for update in (optimizer.update, functools.partial(jax.eval_shape, optimizer.update)):
        _, state = update(given, first, params)
        assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, first)


def test_gradients_of_other_leaves_are_told():
    optimizer = novoclip.watch(optax.sgd(0.1))
    state = optimizer.init(PARAMS)
    with pytest.raises(ValueError, match="call init with parameters whose leaves have the shapes of the gradients"):
        optimizer.update(PARAMS | {"head": None}, state, PARAMS)


def test_moments_that_are_not_found_are_told():
    with pytest.raises(ValueError, match="put watch inside"):
        novoclip.watch(optax.masked(optax.adam(0.1), {"decoder": True, "head": False}), moments=True).init(PARAMS)


def test_histograms_under_a_mask_have_numbers_and_a_watch_within_a_watch_its_place():
    inner = novoclip.watch(optax.sgd(0.1), of="gradients", histogram=True)
    masked = compiled(optax.masked(inner, {"decoder": False, "head": True}))
    _, state = masked.update(PARAMS, masked.init(PARAMS), PARAMS)
    assert set(novoclip.histograms(state, PARAMS)) == {"gradients/0"}
    outer = compiled(novoclip.watch(inner, of="gradients"))
    _, state = outer.update(PARAMS, outer.init(PARAMS), PARAMS)
    assert {name.rsplit("gradients/")[0] for name in novoclip.histograms(state, PARAMS)} == {"inner/"}


def names_of(jaxpr, *, within_branches):
    """The names of the functions that a program calls, in branches too or outside of them only."""
    found = set()
    for eqn in jaxpr.eqns:
        found |= {eqn.params["name"]} if "name" in eqn.params else set()
        if eqn.primitive.name != "cond" or within_branches:
            for part in jax.tree.leaves(tuple(eqn.params.values())):
                if hasattr(part, "eqns"):
                    found |= names_of(part, within_branches=within_branches)
    return found


def test_norms_are_taken_in_the_branch_of_a_step_that_is_due_only():
    optimizer = novoclip.watch(optax.sgd(1.0), every=10, of=ALL)
    jaxpr = jax.make_jaxpr(optimizer.update)(PARAMS, optimizer.init(PARAMS), PARAMS).jaxpr
    assert "block_norms" in names_of(jaxpr, within_branches=True)
    assert "block_norms" not in names_of(jaxpr, within_branches=False)
    every_step = jax.make_jaxpr(novoclip.record().update)(PARAMS, novoclip.record().init(PARAMS)).jaxpr
    assert "block_norms" in names_of(every_step, within_branches=False)


def test_wrong_arguments_say_what_to_write():
    sgd = optax.sgd(0.1)
    for wrong, error, message in (
        ({"every": 0}, ValueError, "every"),
        ({"of": ["weights"]}, ValueError, "of must name some of gradients, updates, params"),
        ({"per": "unit"}, ValueError, "per must name blocks that can be listed"),
        ({"per": "element"}, ValueError, "per must name blocks"),
    ):
        with pytest.raises(error, match=message):
            novoclip.watch(sgd, **wrong).init(PARAMS)
    with pytest.raises(ValueError, match="watch needs the parameters"):
        novoclip.watch(sgd, of="params").update(PARAMS, novoclip.watch(sgd, of="params").init(PARAMS))
    with pytest.raises(ValueError, match="histogram=True"):
        novoclip.histograms(novoclip.watch(sgd).init(PARAMS), PARAMS)
