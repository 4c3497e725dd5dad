"""The learned, relative and spectral rules equal their formulas in float64 NumPy over 200 steps of storm."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest

import novoclip
from novoclip.catalog import CATALOG
from tests.oracles import more_limits as oracle
from tests.oracles.blocks import blocks_of, clipped, norm_of, numbers_of
from tests.oracles.limits import AutoClip, Constant, ZClip
from tests.steps import compiled
from tests.storm import SHAPES, storm

pytestmark = pytest.mark.usefixtures("x64")

STORM = storm(200)
PARAMS = {name: np.asarray(np.random.default_rng(1).normal(size=shape)) for name, shape in SHAPES.items()}
GRANULARITIES = {entry.name: entry.per for entry in CATALOG}
between = lambda low, high: lambda step: low + (high - low) * step / 200  # noqa: E731


def label_of(path, leaf=None):
    return path.split("/")[0]


def measure(per):
    return {"groups": novoclip.groups(label_of), "torch": novoclip.units("torch")}.get(per, per)


def cases(*rows):
    """A rule's first row at each granularity of its catalog entry, its other rows per tensor; more with -m full."""
    first, parameters = set(), []
    usual = ("autoclip-groups", "agc-torch")
    for row in rows:
        name, arguments, *_ = row
        everywhere = (*GRANULARITIES[name], "groups", *(["torch"] if name in ("agc", "autoclip") else []))
        for per in ("tensor", "unit") if name in first else everywhere:
            more = per in ("groups", "torch") if name not in first else per == "unit"
            marks = pytest.mark.full if more and f"{name}-{per}" not in usual else ()
            parameters.append(
                pytest.param(*row, per, id=f"{name}-{','.join(arguments) or 'defaults'}-{per}", marks=marks)
            )
        first.add(name)
    return parameters


def run(rule, gradients, params=None):
    """All updates, a step in each row, from one compiled step."""
    update, state, found = jax.jit(rule.update), rule.init(params or gradients[0]), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        found.append(updates)
    return {name: np.stack([updates[name] for updates in found]) for name in gradients[0]}


def assert_equals(rule, expected, gradients=STORM, params=None, rtol=1e-10):
    found, expected = run(rule, gradients, params), list(expected)
    assert len(expected) == len(gradients)
    for name in expected[0]:
        wanted = np.stack([step[name] for step in expected])
        np.testing.assert_allclose(found[name], wanted, rtol=rtol, atol=1e-300, err_msg=name)


def check(rule, limits, per, shape="hard", params=None):
    """Compare with the oracle whose `limits(block)` makes a block's own limit."""
    blocks = blocks_of(STORM[0], per, label_of)
    own = map(limits, blocks)
    assert_equals(rule, clipped(STORM, lambda: next(own), blocks, "l2", shape), params=params)


def test_the_storm_has_everything_that_goes_wrong():
    norms = {name: np.array([norm_of(gradient[name], "l2") for gradient in STORM]) for name in SHAPES}
    whole = np.sqrt(sum(norm**2 for norm in norms.values()))
    spikes = norms["a/kernel"] > 100
    assert list(np.flatnonzero(spikes)) == [28, 29, 40]
    assert norms["a/bias"][0] == 0 < whole[0]
    assert list(np.flatnonzero(whole == 0)) == [32]
    assert list(np.flatnonzero(~np.isfinite(whole))) == [38]
    assert np.all(whole[35:37] < 0.02 * np.median(whole[1:28]))
    assert np.median(whole[45:]) > 2.5 * np.median(whole[1:28])


quantile, rate = between(0.3, 0.9), between(0.3, 0.05)
HISTORIES = cases(
    ("autoclip", {"percentile": 60.0, "window": 9, "include_current": False}, AutoClip),
    ("autoclip", {"percentile": between(20.0, 90.0), "window": 30, "include_current": False}, AutoClip),
    ("clip_by_running_quantile", {"quantile": 0.7}, oracle.RunningQuantile),
    ("clip_by_running_quantile", {"quantile": quantile, "rate": rate, "initial": 0.1}, oracle.RunningQuantile),
    ("clip_by_running_quantile", {"quantile": 0.7, "rate": 1e-3, "form": "arithmetic"}, oracle.RunningQuantile),
    (
        "clip_by_running_quantile",
        {"quantile": quantile, "rate": between(2e-3, 5e-4), "form": "arithmetic", "initial": 2.0},
        oracle.RunningQuantile,
    ),
    ("clip_by_running_mean", {"factor": 2.0, "decay": 0.98}, oracle.RunningMean),
    ("clip_by_running_mean", {"factor": between(1.0, 3.0), "decay": between(0.5, 0.99)}, oracle.RunningMean),
    ("adagn", {}, oracle.AdaGN),
    ("adagn", {"b1": between(0.9, 0.6), "b2": between(0.8, 0.99), "eps": between(1e-3, 0.1)}, oracle.AdaGN),
)


@pytest.mark.parametrize(("name", "arguments", "limit", "per"), HISTORIES)
def test_memories_are_their_formulas(name, arguments, limit, per):
    rule = getattr(novoclip, name)(**arguments, per=measure(per))
    check(rule, lambda block: limit(**arguments), per, "normalize" if name == "adagn" else "hard")


RAW = {"window": 7, "warmup": 1, "learn": "raw"}
AT_1 = {"lambda_rel": 1.2, "lambda_abs": 1.0}


@pytest.mark.parametrize(
    ("name", "arguments", "per"),
    cases(
        ("clip_by_deviation", {"deviations": 3.0, "window": 16, "warmup": 8, "learn": "raw"}),
        ("clip_by_deviation", {"deviations": 1.5, "window": 20, "warmup": 5, "eps": 0.5}),
        (
            "clip_by_deviation",
            {"deviations": between(0.0, 2.0), "window": 7, "warmup": 1, "learn": "raw", "eps": between(0.2, 1e-3)},
        ),
    ),
)
def test_deviations_are_their_formulas(name, arguments, per):
    rule = novoclip.clip_by_deviation(**arguments, per=measure(per))
    others = {key: value for key, value in arguments.items() if key != "deviations"}
    check(rule, lambda block: oracle.Deviation(arguments["deviations"], **others), per)


Z = {"z_threshold": 2.0, "decay": 0.9, "warmup": 9, "max_norm": 5.0}


@pytest.mark.parametrize(
    ("name", "arguments", "per"),
    cases(
        ("zclip", Z | {"clip_factor": between(0.4, 1.0)}),
        ("zclip", Z | {"skip_update_on_spike": True}),
        ("zclip", Z | {"release": 4}),
        ("zclip", Z | {"release": 2, "mode": "mean", "skip_update_on_spike": True, "max_norm": math.inf}),
        ("zclip", Z | {"release": 3, "mode": "percentile", "z_threshold": between(1.0, 3.0)}),
    ),
)
def test_zclip_with_every_option_is_its_formula(name, arguments, per):
    check(novoclip.zclip(**arguments, per=measure(per)), lambda block: ZClip(**arguments), per)


@pytest.mark.parametrize(
    ("name", "arguments", "per"),
    cases(
        ("adagc", {"lambda_rel": 1.05, "lambda_abs": 1.0, "warmup": 10}),
        ("adagc", {"warmup": 6, "lambda_rel": between(1.5, 1.05), "lambda_abs": between(9.0, 0.5), "floor": 0.3}),
        ("adagc", AT_1 | {"warmup": 1, "decay": between(0.8, 0.99), "floor": between(1.0, 0.2)}),
    ),
)
def test_adagc_is_its_formula(name, arguments, per):
    blocks = blocks_of(STORM[0], per, label_of)
    norms = np.array([[norm_of(numbers_of(gradient, block), "l2") for block in blocks] for gradient in STORM])
    wholes = np.sqrt(np.sum(np.where(np.isfinite(norms), norms, 0) ** 2, axis=1))
    renamed = {"lambda_rel": "factor", "lambda_abs": "absolute"}
    others = {renamed.get(key, key): value for key, value in arguments.items()}
    check(novoclip.adagc(**arguments, per=measure(per)), lambda block: oracle.AdaGC(wholes, **others), per)


RELATIVE = cases(
    ("agc", {"clipping": 0.5}, oracle.ShareOfParameters),
    ("agc", {"clipping": between(0.1, 2.0), "eps": between(0.2, 2.0)}, oracle.ShareOfParameters),
    ("clip_by_trust_ratio", {"coefficient": 0.05, "learning_rate": 0.1}, oracle.TrustRatio),
    ("clip_by_trust_ratio", {"coefficient": 1.0, "max_norm": 0.5, "shape": "normalize"}, oracle.TrustRatio),
    (
        "clip_by_trust_ratio",
        {
            "coefficient": between(0.01, 1.0),
            "learning_rate": between(0.5, 0.0),
            "min_norm": 0.3,
            "max_norm": between(1.0, 3.0),
        },
        oracle.TrustRatio,
    ),
)


@pytest.mark.parametrize(("name", "arguments", "limit", "per"), RELATIVE)
def test_shares_of_the_weights_are_their_formulas(name, arguments, limit, per):
    rule = getattr(novoclip, name)(**arguments, per=measure(per))
    shape = arguments.get("shape", "hard")
    numbers = {key: value for key, value in arguments.items() if key != "shape"}
    check(rule, lambda block: limit(norm_of(numbers_of(PARAMS, block), "l2"), **numbers), per, shape, PARAMS)


@pytest.mark.parametrize("shape", ["hard", "normalize"])
def test_weights_of_zero_are_free_of_a_trust_ratio(shape):
    rule = compiled(novoclip.clip_by_trust_ratio(1e-3, shape=shape))
    gradient = {"a": np.array([3.0, 4.0]), "b": np.array([3.0, 4.0])}
    params = {"a": np.zeros(2), "b": np.array([0.0, 1.0])}
    updates, _ = rule.update(gradient, rule.init(params), params)
    np.testing.assert_array_equal(updates["a"], gradient["a"])
    np.testing.assert_allclose(updates["b"], [0.6e-3, 0.8e-3], rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "arguments", "limit", "per"),
    cases(
        ("delta_gclip", {"max_norm": 0.5, "delta": 0.1}, oracle.Share),
        ("delta_gclip", {"max_norm": between(1.0, 0.0), "delta": between(0.0, 0.9)}, oracle.Share),
        ("clip_to_band", {"min_norm": 0.5, "max_norm": 1.5}, oracle.Band),
        ("clip_to_band", {"min_norm": between(0.0, 2.0), "max_norm": between(2.0, 1.0)}, oracle.Band),
        ("clip_by_norm", {"max_norm": 0.7, "shape": "smooth"}, Constant),
    ),
)
def test_bands_shares_and_smooth_limits_are_their_formulas(name, arguments, limit, per):
    rule = getattr(novoclip, name)(**arguments, per=measure(per))
    shape = arguments.get("shape", "normalize" if name == "clip_to_band" else "hard")
    check(rule, lambda block: limit(*(value for key, value in arguments.items() if key != "shape")), per, shape)


@pytest.mark.parametrize("per", ["tree", "tensor", "unit", "element", "groups", "torch"])
def test_the_tighter_of_two_limits_holds_and_the_other_still_learns(per):
    number = between(1.0, 3.0)
    limit = novoclip.limits.tighter(novoclip.limits.autoclip(70.0, window=11), novoclip.limits.constant(number))
    rule = novoclip.clip_by_limit(measure(per), limit)
    check(rule, lambda block: oracle.Tighter(AutoClip(70.0, 11), Constant(number)), per)


@pytest.mark.parametrize("decay", [0.999, 0.7, between(0.5, 0.99)])
def test_adaclip_is_its_formula(decay):
    assert_equals(novoclip.adaclip(decay), oracle.adaclip(STORM, decay))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"relative": 0.3, "floor": 0.1, "absolute": 1e-3},
        {"relative": between(0.1, 2.0), "floor": between(0.0, 1.0), "absolute": between(1e-3, 1.0)},
    ],
)
def test_clippy_is_its_formula(arguments):
    params = PARAMS | {"a/bias": np.array([0.0, 1.0, -2.0]), "b/scale": np.zeros(())}
    assert_equals(novoclip.clippy(**arguments), oracle.clippy(STORM, params, **arguments), params=params)


CURVES = {"hard": min, "algebraic": lambda s, c: s / math.sqrt(1 + (s / c) ** 2), "normalize": lambda s, c: c}


@pytest.mark.parametrize("shape", CURVES)
def test_singular_values_are_clipped_as_numpys(shape):
    top, curve = between(0.5, 3.0), CURVES[shape]

    def new(step):
        return lambda s: curve(s, top(step)) if s > 0 else 0.0

    expected = [{k: oracle.spectral(g, new(i)) for k, g in tree.items()} for i, tree in enumerate(STORM)]
    found = run(novoclip.clip_by_spectral_norm(top, shape=shape), STORM)
    for name in SHAPES:
        wanted = np.stack([step[name] for step in expected])
        # Numbers of a matrix are right to a part of its largest singular value, c, which is 0.5 and more.
        np.testing.assert_allclose(found[name], wanted, rtol=1e-10, atol=1e-10 * 0.5, err_msg=name)


@pytest.mark.parametrize("shape", CURVES)
def test_a_stack_of_matrices_is_the_matrices_one_by_one(shape):
    stack = np.random.default_rng(2).normal(size=(4, 5, 3)) * np.array([1e-3, 1.0, 10.0, 1e3])[:, None, None]
    one, many = (compiled(novoclip.clip_by_spectral_norm(0.8, stacked=stacked, shape=shape)) for stacked in (0, 1))
    together, _ = many.update(stack, many.init(stack))
    for matrix, found in zip(stack, together, strict=True):
        alone, _ = one.update(matrix, one.init(matrix))
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found, oracle.spectral(matrix, lambda s: CURVES[shape](s, 0.8)), rtol=0, atol=1e-12)


@functools.cache
def spectral_clip(shape):
    return compiled(novoclip.clip_by_spectral_norm(1.0, shape=shape))


@pytest.mark.parametrize("largest", [1.0, 2.0**10, 2.0**20])
@pytest.mark.parametrize("shape", CURVES)
def test_singular_values_far_beyond_the_limit_are_exact_to_a_part_of_it(largest, shape):
    hadamard = functools.reduce(np.kron, [np.array([[1.0, 1.0], [1.0, -1.0]])] * 4) / 4  # orthogonal, and exact
    values = np.array([largest / 2**i for i in range(16)])
    matrix = (hadamard * values) @ np.roll(hadamard, 3, axis=0).T
    expected = (hadamard * [CURVES[shape](s, 1.0) for s in values]) @ np.roll(hadamard, 3, axis=0).T
    rule = spectral_clip(shape)
    found, _ = rule.update(matrix, rule.init(matrix))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("axes", ["flax", "torch"])
def test_centralize_subtracts_the_mean_over_the_inputs(axes):
    expected = [{k: oracle.centralized(g, axes) for k, g in tree.items()} for tree in STORM]
    found = run(novoclip.centralize(axes), STORM)
    for step, name in itertools.product(range(200), SHAPES):
        size = np.nan_to_num(STORM[step][name])
        # A difference is right to a part of what was subtracted.
        near = 1e-15 * np.max(np.abs(size))
        np.testing.assert_allclose(found[name][step], expected[step][name], rtol=1e-10, atol=near)


@pytest.mark.parametrize("per", ["element", "tensor", "unit"])
def test_a_step_that_is_nan_leaves_no_trace(per):
    """Also for the rules whose oracle would share a mistake: the run without the step is the same run."""
    rule = novoclip.zclip(2.0, warmup=5, decay=0.9, release=3, per=per)
    poisoned = [*STORM[:38], {name: np.full(shape, np.nan) for name, shape in SHAPES.items()}, *STORM[39:]]
    found, without = run(rule, poisoned), run(rule, STORM[:38] + STORM[39:])
    for name in SHAPES:
        np.testing.assert_array_equal(np.delete(found[name], 38, axis=0), without[name])
        assert not np.any(found[name][38])


qk_clip = jax.jit(novoclip.qk_clip)


@pytest.mark.parametrize("balance", [0.5, 1.0, 0.0, 0.3])
@pytest.mark.parametrize("key_heads", [6, 3, 1])
def test_qk_clip_scales_each_heads_weights_down(key_heads, balance):
    generator = np.random.default_rng(3)
    query, key = generator.normal(size=(5, 6, 4)), generator.normal(size=(5, key_heads, 4))
    logits = np.array([50.0, 400.0, -3.0, 150.0, 99.0, 1e6])
    new_query, new_key = qk_clip(query, key, logits, threshold=80.0, balance=balance)
    gamma = [min(1.0, 80.0 / s) if s > 0 else 1.0 for s in logits]
    for head in range(6):
        np.testing.assert_allclose(new_query[:, head], query[:, head] * gamma[head] ** balance, rtol=1e-14)
    of_key = np.reshape(gamma, (key_heads, -1))
    for head in range(key_heads):
        factor = min(of_key[head]) ** (1 - balance)
        np.testing.assert_allclose(new_key[:, head], key[:, head] * factor, rtol=1e-14)
    if balance > 0:
        biases = qk_clip(query[0], key[0], logits, threshold=80.0, balance=balance)
        np.testing.assert_allclose(biases[0], new_query[0], rtol=1e-15)
        np.testing.assert_allclose(biases[1], new_key[0], rtol=1e-15)


def test_qk_clip_leaves_heads_alone_whose_logits_say_nothing():
    query = np.ones((2, 4, 3))
    logits = np.array([np.nan, np.inf, 0.0, 200.0])
    new_query, new_key = qk_clip(query, query, logits)
    np.testing.assert_allclose(new_query[0, :, 0], [1, 1, 1, math.sqrt(0.5)], rtol=1e-15)
    np.testing.assert_array_equal(new_query, new_key)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_qk_clip_scales_a_head_that_shares_its_key_with_one_whose_logits_say_nothing(bad):
    query, key = np.ones((2, 4, 3)), np.ones((2, 2, 3))
    new_query, new_key = qk_clip(query, key, np.array([bad, 400.0, 60.0, 200.0]))
    np.testing.assert_allclose(new_query[0, [0, 1, 2], 0], [1, 0.5, 1], rtol=1e-15)
    np.testing.assert_allclose(new_key[0, :, 0], [0.5, math.sqrt(0.5)], rtol=1e-15)
