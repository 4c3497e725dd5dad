"""Every rule equals its formula in float64 NumPy, and Optax where Optax is right."""

import functools

import jax
from jax import lax
import numpy as np
import optax
import pytest

import novoclip
from tests.oracles.blocks import blocks_of, clipped, norm_of
from tests.oracles.limits import AutoClip, Constant, InverseSecondMoment, ProportionalSecondMoment, ZClip
from tests.steps import stacked, steps_of
from tests.storm import storm

pytestmark = pytest.mark.usefixtures("x64")

PER = ("tree", "tensor", "unit", "element", "groups")


def label_of(path, leaf=None):
    return path.split("/")[0]


def measure(per, norm="l2"):
    return {"per": novoclip.groups(label_of, norm=norm)} if per == "groups" else {"per": per, "norm": norm}


def assert_equals_oracle(rule, expected, gradients):
    ((updates, states),) = steps_of([rule], gradients)
    for name, leaf in stacked(expected).items():
        np.testing.assert_allclose(updates[name], leaf, rtol=1e-10, atol=1e-300, err_msg=name)
    return states


def check(rule, new_limit, per, norm="l2", shape="hard"):
    gradients = storm()
    blocks = blocks_of(gradients[0], per, label_of)
    return assert_equals_oracle(rule, clipped(gradients, new_limit, blocks, norm, shape), gradients)


@pytest.mark.parametrize(
    ("per", "norm"),
    [(per, norm) for per in PER for norm in ("l1", "l2", "max", "rms") if per != "element" or norm == "l2"],
)
def test_clip_by_norm_is_its_formula(per, norm):
    check(novoclip.clip_by_norm(0.7, **measure(per, norm)), functools.partial(Constant, 0.7), per, norm)


@pytest.mark.parametrize("shape", ["hard", "tanh", "arctan", "algebraic", "normalize", "drop"])
@pytest.mark.parametrize("per", ["tensor", "element"])
def test_shapes_are_their_formulas(per, shape):
    check(novoclip.clip_by_norm(0.7, per=per, shape=shape), functools.partial(Constant, 0.7), per, "l2", shape)


def test_clip_by_global_norm_is_its_formula():
    check(novoclip.clip_by_global_norm(0.7), functools.partial(Constant, 0.7), "tree")


def test_clip_by_value_is_its_formula():
    check(novoclip.clip_by_value(0.3), functools.partial(Constant, 0.3), "element")


@pytest.mark.parametrize("per", PER)
def test_normalize_by_norm_is_its_formula(per):
    rule = novoclip.normalize_by_norm(2.0, **measure(per))
    check(rule, functools.partial(Constant, 2.0), per, shape="normalize")


@pytest.mark.parametrize("per", PER)
def test_autoclip_is_its_formula_at_five_granularities(per):
    check(novoclip.autoclip(60.0, window=7, **measure(per)), functools.partial(AutoClip, 60.0, 7), per)


def test_every_number_of_a_limit_may_follow_a_schedule():
    rising = lambda low, high: lambda step: low + (high - low) * step / 200  # noqa: E731
    number = rising(20.0, 90.0)
    check(novoclip.autoclip(number, window=7), lambda: AutoClip(number, 7), "tree")
    z, decay, top, eps = rising(1.5, 3.0), rising(0.8, 0.99), rising(4.0, 6.0), rising(1e-3, 1.0)
    rule = novoclip.zclip(z, decay=decay, warmup=9, max_norm=top, eps=eps, per="tensor")
    check(rule, lambda: ZClip(z, decay, 9, top, "adaptive_scaling", eps), "tensor")
    for form, oracle in (("inverse", InverseSecondMoment), ("proportional", ProportionalSecondMoment)):
        threshold, b2 = rising(0.05, 2.0), rising(0.5, 0.99)
        rule = novoclip.clip_by_second_moment(threshold, b2, form=form)
        check(rule, lambda oracle=oracle, threshold=threshold, b2=b2: oracle(threshold, b2), "element")


def test_autoclip_with_a_window_as_long_as_the_run_is_the_authors():
    check(novoclip.autoclip(10.0, window=200), functools.partial(AutoClip, 10.0, 10**9), "tree")


@pytest.mark.parametrize("mode", ["adaptive_scaling", "mean", "percentile"])
@pytest.mark.parametrize("per", ["tree", "tensor", "unit", "element"])
def test_zclip_is_the_authors_loop(per, mode):
    rule = novoclip.zclip(2.0, decay=0.9, warmup=9, max_norm=5.0, mode=mode, per=per)
    check(rule, lambda: ZClip(2.0, 0.9, 9, 5.0, mode), per)


@pytest.mark.parametrize("max_norm", [1.0, np.inf])
def test_zclip_with_the_authors_maximum_and_without(max_norm):
    check(novoclip.zclip() if max_norm > 1 else novoclip.zclip(max_norm=1.0), lambda: ZClip(max_norm=max_norm), "tree")


@pytest.mark.parametrize(
    ("form", "threshold", "oracle"),
    [("inverse", 0.05, InverseSecondMoment), ("proportional", 2.0, ProportionalSecondMoment)],
)
def test_second_moment_per_element_is_its_formula(form, threshold, oracle):
    rule = novoclip.clip_by_second_moment(threshold, 0.9, form=form)
    check(rule, lambda: oracle(threshold, 0.9), "element")


@pytest.mark.parametrize(
    ("form", "threshold", "oracle"),
    [("inverse", 0.05, InverseSecondMoment), ("proportional", 2.0, ProportionalSecondMoment)],
)
def test_second_moment_per_tensor_clips_numbers_at_a_limit_from_their_mean_square(form, threshold, oracle):
    gradients = storm()
    limits = {name: oracle(threshold, 0.9) for name in gradients[0]}
    expected = []
    for step, gradient in enumerate(gradients):
        result = {}
        for name, leaf in gradient.items():
            rms = norm_of(leaf, "rms")
            limit = limits[name](rms, step) if np.isfinite(rms) else 0.0
            result[name] = np.clip(np.nan_to_num(leaf), -limit, limit)
        expected.append(result)
    rule = novoclip.clip_by_second_moment(threshold, 0.9, per="tensor", form=form, count=True)
    states = assert_equals_oracle(rule, expected, gradients)
    changed = [
        any(np.any(a[name] != g[name]) for name in g if np.all(np.isfinite(g[name])))
        for a, g in zip(expected, gradients, strict=True)
    ]
    broken = [not all(np.all(np.isfinite(leaf)) for leaf in g.values()) for g in gradients]
    assert states.nonfinite[-1] == sum(broken)
    assert states.clipped[-1] == sum(c and not b for c, b in zip(changed, broken, strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (novoclip.clip_by_global_norm(0.7), optax.clip_by_global_norm(0.7)),
        (novoclip.clip_by_value(0.3), optax.clip(0.3)),
        (novoclip.clip_by_norm(0.7, norm="rms"), optax.clip_by_block_rms(0.7)),
    ],
)
def test_ordinary_gradients_are_clipped_as_in_optax(ours, theirs):
    first = lambda gradient: [rule.update(gradient, rule.init(gradient))[0] for rule in (ours, theirs)]  # noqa: E731
    mine, other = jax.jit(lambda gradients: lax.map(first, gradients))(stacked(storm()[1:28]))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-13), mine, other)


def test_where_optax_goes_wrong():
    huge = {"w": np.full(4, 1e20, np.float32)}
    half = {"w": np.full(70_000, 2.0, np.float16)}
    infinite = {"w": np.array([np.inf, 1.0]), "b": np.ones(1)}

    @jax.jit
    def clipped_by(gradients):
        rules = optax.clip_by_global_norm(1.0), novoclip.clip_by_global_norm(1.0)
        return [[rule.update(gradient, rule.init(gradient))[0]["w"] for rule in rules] for gradient in gradients]

    *finite, (theirs_of_infinite, ours_of_infinite) = clipped_by((huge, half, infinite))
    for theirs, ours in finite:
        assert not np.any(theirs)
        np.testing.assert_allclose(np.linalg.norm(np.asarray(ours, np.float64)), 1.0, rtol=1e-3)
    assert np.any(np.isnan(theirs_of_infinite))
    assert not np.any(ours_of_infinite)


def test_a_spike_of_1e30_does_not_poison_the_second_moment():
    rule = novoclip.clip_by_second_moment(0.01)
    ((updates, states),) = steps_of([rule], np.float32([[1e30, 1.0], [1.0, 1.0]]))
    assert np.all(updates > 0)
    assert np.all(np.isfinite(states.limit_state.root))


def test_zclip_holds_on_to_a_lower_level_unless_by_percentile():
    generator = np.random.default_rng(0)
    sizes = (1 + 0.05 * generator.normal(size=400)) * np.where(np.arange(400) < 100, 1.0, 1.5)
    rules = [novoclip.zclip(max_norm=np.inf, mode=mode) for mode in ("adaptive_scaling", "percentile")]
    by_deviations, by_percentile = (states.clipped[399] - states.clipped[299] for _, states in steps_of(rules, sizes))
    assert by_deviations == 100
    assert by_percentile < 10
