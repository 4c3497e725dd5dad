"""Recorded norms through rules: figures counted by hand, limits of live runs, and what is recommended."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.guards import spikes_and_calm, synthetic
from benchmarks.replays import truth
from benchmarks.replays_made import made
import novoclip
from novoclip.records import Record, RecordError, read_record
from novoclip.replays.judge import judged, why_unfit
from novoclip.replays.run import course, course_of, courses, why_not_by_tensor

QUIET = np.exp(0.1 * np.random.default_rng(0).normal(size=200))
SPIKY = QUIET * np.where(np.isin(np.arange(200), (30, 31, 90, 150)), 20.0, 1.0)
TWO = {"at one": optax.clip_by_global_norm(1.0), "at three": novoclip.clip_by_global_norm(3.0)}


def record_of(norms, losses=None, tensors=None):
    norms = np.asarray(norms, np.float64)
    none = np.full(norms.size, np.nan)
    losses = none if losses is None else np.asarray(losses, np.float64)
    return Record("a run", np.arange(norms.size), norms, losses, none, tensors or {}, 1, ())


@pytest.mark.parametrize("record", synthetic()[:6], ids=lambda record: record.name)
def test_spikes_and_calm_rows_are_those_of_the_benchmark(record):
    rows = judged(record.norms)
    spike, calm = spikes_and_calm(record.norms)
    # Beyond that definition, a spike has at least 3.3 levels: rows of a new level are none.
    np.testing.assert_array_equal(rows.spike, spike & (record.norms >= 3.3 * rows.level))
    np.testing.assert_array_equal(rows.calm, calm)


def test_a_recorded_norm_is_a_gradient_with_one_element():
    norms = [0.5, 3.0, 1.0, 0.0, 7.0]
    for rule in TWO.values():
        assert course(rule, record_of(norms)).after.max() <= 3.0
    np.testing.assert_allclose(course(TWO["at one"], record_of(norms)).after, np.minimum(norms, 1), rtol=1e-6)
    found = course(novoclip.clip_by_global_norm(3.0), record_of(norms))
    np.testing.assert_allclose(found.after, np.minimum(norms, 3), rtol=1e-6)
    np.testing.assert_array_equal(found.limits, np.full(5, 3.0))


@pytest.mark.parametrize("grid", [False, True])
def test_what_was_compiled_for_one_record_serves_those_of_other_lengths(grid):
    """Each program takes megabytes, not all of which are ever freed: not one for each length."""
    traced = []

    def rule(limit=3.0):
        traced.append(True)
        return novoclip.clip_by_global_norm(limit)

    for rows in (*range(1, 600, 37), 200, 200):
        record = record_of(np.resize(SPIKY, rows))
        if grid:
            found = courses(rule, [3.0, 1.0], record, tensors=False)
            np.testing.assert_allclose(found[1].after, np.minimum(record.norms, 1), rtol=1e-6)
        else:
            found = [course_of(rule, record, tensors=False)]
        np.testing.assert_allclose(found[0].after, np.minimum(record.norms, 3), rtol=1e-6)
        np.testing.assert_array_equal(found[0].limits, np.full(rows, 3.0))
    assert len(traced) == 3  # for up to 256, 512 and 1024 rows


def test_a_record_that_is_filled_up_gives_the_same_course():
    losses = np.where(np.arange(150) % 7 == 0, np.nan, 8 - np.arange(150) / 50)
    record = record_of(
        np.where(np.arange(150) == 40, np.nan, SPIKY[:150]), losses, {"a": SPIKY[:150], "b": QUIET[:150]}
    )

    def rule():
        return novoclip.protect(optax.identity())

    for tensors in (False, True):
        alone = course(rule(), record, tensors=tensors)
        for one, other in zip(alone, course_of(rule, record, tensors=tensors), strict=True):
            np.testing.assert_array_equal(one, other)


def test_guards_see_the_losses_and_what_they_skip_is_counted():
    norms, losses = np.array([1.0, np.nan, 1.0, 1.0]), np.array([2.0, 2.0, 90.0, 2.0])
    guard = novoclip.skip_spikes(optax.identity(), value_limit=50.0)
    found = course(guard, record_of(norms, losses))
    np.testing.assert_array_equal(found.skipped, [False, True, True, False])
    np.testing.assert_array_equal(found.after, [1, 0, 0, 1])
    without = course(novoclip.guard_nonfinite(optax.identity()), record_of(norms))
    np.testing.assert_array_equal(without.skipped, [False, True, False, False])


def test_a_row_without_a_loss_has_that_of_the_row_before():
    losses = np.array([np.nan, 2.0, np.nan, 90.0, np.nan])
    found = course(novoclip.skip_spikes(optax.identity(), value_limit=50.0), record_of(np.ones(5), losses))
    np.testing.assert_array_equal(found.skipped, [False, False, False, True, True])


@pytest.mark.parametrize(
    "rule",
    [novoclip.zclip(100.0, warmup=4), novoclip.autoclip(100.0, window=16), novoclip.clip_by_running_mean(50.0)],
    ids=["zclip", "autoclip", "running mean"],
)
def test_limits_are_exactly_those_that_a_live_state_recorded(rule):
    """In a run in which the rule was active, and clipped nothing."""
    generator = np.random.default_rng(1)
    params = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}
    state, update, norms, limits = rule.init(params), jax.jit(rule.update), [], []
    for _ in range(40):
        gradients = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), params)
        _, state = update(gradients, state)
        norms.append(float(state.norms))
        limits.append(float(state.limits))
    assert int(state.clipped) == 0
    np.testing.assert_array_equal(course(rule, record_of(norms)).limits, limits)


def test_norms_of_tensors_are_a_pytree():
    tensors = {"a": np.array([3.0, 0.5, 6.0]), "b": np.array([4.0, 0.5, 0.1])}
    whole = np.sqrt(tensors["a"] ** 2 + tensors["b"] ** 2)
    found = course(novoclip.clip_by_norm(1.0), record_of(whole, tensors=tensors), tensors=True)
    expected = np.sqrt(np.minimum(tensors["a"], 1) ** 2 + np.minimum(tensors["b"], 1) ** 2)
    np.testing.assert_allclose(found.after, expected, rtol=1e-6)


def test_figures_are_those_counted_by_hand():
    found = novoclip.replay(record_of(SPIKY), TWO).outcomes
    spike, calm = spikes_and_calm(SPIKY)
    level = np.array([np.median(SPIKY[max(0, i - 50) : i + 51]) for i in range(200)])
    assert spike.sum() == 4
    for line, limit in (("at one", 1.0), ("at three", 3.0)):
        each = next(outcome for outcome in found if outcome.line == line)
        after = np.minimum(SPIKY, limit)
        smaller = after < 0.999 * SPIKY
        assert (each.spikes, each.calm) == (4, calm.sum())
        assert each.caught == (spike & (after < 3.3 * level)).sum()
        assert each.touched == (calm & smaller).sum()
        assert each.clipped == pytest.approx(smaller.mean())
        assert each.shrinkage == pytest.approx((after / SPIKY).mean(), rel=1e-5)
        assert each.largest == pytest.approx((after / level).max(), rel=1e-5)
        assert each.largest_row == np.argmax(after / level)


def test_how_long_a_rule_takes_to_adapt_to_a_rise():
    risen = QUIET * np.where(np.arange(200) < 100, 1.0, 8.0)
    rows = judged(risen)
    assert abs(rows.rise - 100) <= 16
    rules = {"fixed": novoclip.clip_by_global_norm(3.0), "adaptive": novoclip.clip_by_running_mean(2.0)}
    found = {each.line: each.adapts for each in novoclip.replay(record_of(risen), rules).outcomes}
    assert found["fixed"] == np.inf
    assert 8 < found["adaptive"] < 60
    assert novoclip.replay(record_of(SPIKY), TWO).outcomes[0].adapts is None


def test_rows_of_a_new_level_are_no_spikes():
    risen = QUIET * np.where(np.arange(200) < 100, 1.0, 6.0)
    each = novoclip.replay(record_of(risen), {"nothing": optax.identity()}).outcomes[0]
    assert (each.spikes, each.caught, each.touched) == (0, 0, 0)


def test_rows_without_a_norm_that_were_logged_as_zeros_do_not_make_spikes():
    norms = np.where(np.arange(200) % 2, QUIET, 0.0)
    assert judged(norms).spike.sum() == 0
    mostly = np.where(np.arange(200) % 3, 0.0, QUIET)
    found = novoclip.replay(record_of(mostly), {"nothing": optax.identity()})
    assert "most norms are 0" in found.warnings[0]
    assert np.isfinite(found.outcomes[0].largest)


def test_guards_are_found_under_names_and_those_of_optax_too():
    norms = SPIKY.copy()
    norms[120] = np.nan
    guard = novoclip.protect(optax.identity())
    plain, named = (course(rule, record_of(norms)) for rule in (guard, optax.named_chain(("guard", guard))))
    assert plain.skipped.sum() > 3
    np.testing.assert_array_equal(named.skipped, plain.skipped)
    np.testing.assert_array_equal(named.limits, plain.limits)
    assert course(optax.apply_if_finite(optax.identity(), 5), record_of(norms)).skipped[120]
    chain = optax.chain(novoclip.record(), novoclip.clip_by_global_norm(3.0))
    np.testing.assert_array_equal(course(chain, record_of(norms)).limits[:100], 3.0)


def test_an_infinite_loss_is_judged_as_it_is():
    losses = np.where(np.arange(200) == 20, np.inf, 2.0)
    assert course(novoclip.protect(optax.identity()), record_of(QUIET, losses)).skipped[20]


def test_tensors_that_are_not_all_or_have_gaps_are_not_judged_alone():
    for tensors, reason in (
        ({"a": QUIET, "b": QUIET}, "the 2 tensors have 0.47 of the whole norm"),
        ({"a": 3 * QUIET, "b": np.where(np.arange(200) % 3, QUIET, np.nan)}, "missing in some rows"),
    ):
        record = record_of(3 * QUIET, tensors=tensors)
        assert reason in why_not_by_tensor(record)
    whole = record_of(np.hypot(QUIET, 2 * QUIET) * 1e20, tensors={"a": QUIET * 1e20, "b": 2 * QUIET * 1e20})
    assert why_not_by_tensor(whole) is None
    np.testing.assert_allclose(course(optax.identity(), whole, tensors=True).after, whole.norms, rtol=1e-5)


def test_the_wish_orders_the_rules():
    rules = TWO | {"nothing": optax.identity()}
    spikes = novoclip.replay(record_of(SPIKY), rules)
    assert spikes.recommended.line == "at three"
    assert spikes.runner_up is None  # the others fulfil nothing
    steady = novoclip.replay(record_of(SPIKY), rules, want="steady")
    assert [each.line for each in steady.outcomes] == ["at three", "at one", "nothing"]  # the least shrinking first
    few = novoclip.replay(record_of(SPIKY), rules, want="steady", max_clipped=0.05)
    assert few.recommended.clipped <= 0.05
    assert few.outcomes[-1].line == "at one"


@pytest.mark.parametrize("record", [synthetic()[0], synthetic()[6]], ids=lambda record: record.name)
def test_what_is_recommended_catches_spikes_and_leaves_calm_rows_alone(record):
    found = novoclip.replay(record_of(record.norms, record.losses))
    assert found.recommended.caught >= 0.95 * found.recommended.spikes > 0
    assert found.recommended.touching <= 0.01
    assert eval(found.recommended.line.replace("optimizer", "optax.identity()"))  # can be pasted
    assert found.runner_up.line.partition("(")[0] != found.recommended.line.partition("(")[0]
    assert f"Recommended: {found.recommended.line}" in str(found)


def cautions_of(norms):
    """Return what is said of a rule that clips at twice the running mean."""
    found = novoclip.replay(record_of(norms), {"mean": novoclip.clip_by_running_mean(2.0)})
    assert found.recommended.touching <= 0.01
    return " ".join(found.warnings)


def test_rows_that_are_touched_though_they_are_no_spikes_are_told():
    assert cautions_of(SPIKY) == ""
    heavy = np.where(np.arange(200) % 10 == 9, 3.2, 1.0) * QUIET
    assert "2 levels or more, as with a heavy tail or a second level" in cautions_of(heavy)
    risen = QUIET * np.where(np.arange(200) < 100, 1.0, 8.0)
    assert "they belong to a new level, more than 5 times the old one" in cautions_of(risen)


def test_many_spikes_of_one_size_may_be_batches_of_another_kind():
    often = np.arange(200) % 10 == 9
    told = cautions_of(QUIET * np.where(often, 8.0, 1.0))
    assert "10 % of the rows are spikes, near 8." in told
    assert "if these are batches of another kind, a guard skips them all" in told
    sizes = np.geomspace(6, 600, 200)
    assert "another kind" not in cautions_of(QUIET * np.where(often, sizes, 1.0))


def test_a_burst_of_spikes_is_no_new_level():
    burst = (np.arange(200) >= 100) & (np.arange(200) < 120)
    rows = judged(QUIET * np.where(burst, 7.0, 1.0))
    np.testing.assert_array_equal(rows.spike, burst)


@pytest.mark.parametrize(
    "name", ["lognormal noise of 0.45", "bursts of 20 spikes of 5 to 10", "a tenth of the rows at 6 levels"]
)
def test_planted_spikes_are_caught_or_a_warning_says_why_not(name):
    """Judged by where the spikes were planted, not by what the library takes for one."""
    each = next(each for each in made() if each.name == name)
    rules = {
        "protect": novoclip.protect(optax.identity()),
        "tighter": novoclip.protect(optax.identity(), clip=novoclip.limits.running_mean(2.0)),
    }
    found = novoclip.replay(record_of(each.norms), rules)
    caught, touched = truth(found.recommended, each)
    assert (caught >= 0.95 * each.spikes.sum() and touched <= 0.01) or found.warnings


GENERATOR = np.random.default_rng(2)
UNFIT = {
    "no level": (np.exp(2 * GENERATOR.normal(size=300)), "no level: half of the norms differ"),
    "diverged": (QUIET * np.exp(np.linspace(0, 12, 200)), "diverged: the norms end"),
    "not finite": (np.where(np.arange(200) < 150, QUIET, np.nan), "diverged: most of the last tenth"),
    "too short": (QUIET[:40], "too short: 40 finite norms"),
    "zero": (np.zeros(200), "every finite norm is 0"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_nothing_is_recommended_where_nothing_fits(name):
    norms, reason = UNFIT[name]
    assert any(reason in each for each in why_unfit(norms, judged(norms)))
    found = novoclip.replay(record_of(norms), TWO)
    assert found.recommended is found.runner_up is None
    assert "Nothing is recommended." in str(found)
    assert reason in str(found)


def test_no_rule_fulfils_the_wish():
    found = novoclip.replay(record_of(SPIKY), {"nothing": optax.identity()})
    assert found.recommended is None
    assert "no rule fulfils the wish 'spikes'" in found.warnings[0]


def test_wrong_arguments_say_what_to_write():
    for wrong, error, message in (
        ({"want": "calm"}, ValueError, "want must be one of"),
        ({"max_clipped": 5}, ValueError, "max_clipped must be a fraction"),
        ({"max_clipped": True}, ValueError, "max_clipped must be a fraction"),
        ({"max_clipped": "5%"}, ValueError, "max_clipped must be a fraction"),
        ({"rules": novoclip.zclip()}, TypeError, r"rules must be a mapping of names to transforms, or a sequence"),
        ({"rules": {}}, ValueError, "at least one transform"),
        ({"rules": [novoclip.limits.constant(1.0)]}, TypeError, "rules must hold transforms"),
        ({"norm": "x"}, ValueError, "has no effect on a Record"),
    ):
        with pytest.raises(error, match=message):
            novoclip.replay(record_of(SPIKY), **wrong)
    with pytest.raises(RecordError, match="flat at"):
        novoclip.replay(np.minimum(SPIKY * 3, 3.0))
    assert isinstance(read_record(SPIKY), Record)
