"""Rules and optimizers equal the authors' code, or a packaged one, run on the same gradients.

The numbers were made by trajectories/make_rules.py. Where that code adds a small number to the norm that it
divides by, what it gives is multiplied by (n + 1e-6) / n before it is compared.
"""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import novoclip
from tests.trajectories.inputs import gradients_without_faults, parameters

pytestmark = pytest.mark.usefixtures("x64")

STORED = json.loads((Path(__file__).parent / "trajectories" / "rules.json").read_text(encoding="utf-8"))
GRADIENTS = gradients_without_faults()
PARAMS = parameters()
PRECISION = 2e-12  # 13 digits were stored
SINGLE = 3e-7  # where that code takes a norm in float32


def length(leaves):
    return np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves))


def stored(name):
    """The updates of a case, of which some leaves may not have been stored."""
    return [{leaf: np.asarray(value) for leaf, value in step.items()} for step in STORED[name]["updates"]]


def without_small_term(steps, per):
    """Undo the 1e-6 in the divisor, where the gradient was clipped."""
    for step, gradient in zip(steps, GRADIENTS, strict=True):
        for name, leaf in step.items():
            n = length(gradient.values()) if per == "tree" else length([gradient[name]])
            if np.max(np.abs(leaf)) < (1 - 1e-11) * np.max(np.abs(gradient[name])):
                step[name] = leaf * (n + 1e-6) / n
    return steps


def run(transform, gradients=None):
    update, state = jax.jit(transform.update), transform.init(PARAMS)
    for gradient in gradients or GRADIENTS:
        updates, state = update(gradient, state, PARAMS)
        yield updates


def assert_equal(transform, expected, rtol=PRECISION, steps=slice(None)):
    largest = 0.0
    for step, (found, wanted) in list(enumerate(zip(run(transform), expected, strict=True)))[steps]:
        for name, leaf in wanted.items():
            # A running mean rounds to a part of its largest term, which may be of some steps ago.
            largest = max(0.9 * largest, np.max(np.abs(leaf)))
            near = np.abs(np.asarray(found[name]) - leaf) <= rtol * (np.abs(leaf) + largest)
            assert np.all(near), f"{step} {name}: {found[name]} is not {leaf}"


zclip = functools.partial(novoclip.zclip, 2.0, decay=0.9, warmup=9)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("adaptive scaling", {"max_norm": 5.0}),
        ("adaptive scaling, no max", {"max_norm": np.inf}),
        ("mean", {"max_norm": 5.0, "mode": "mean"}),
        ("mean, no max", {"max_norm": np.inf, "mode": "mean"}),
        ("percentile", {"max_norm": 5.0, "mode": "percentile"}),
        ("percentile, no max", {"max_norm": np.inf, "mode": "percentile"}),
        ("factor", {"max_norm": 5.0, "clip_factor": 0.5}),
        ("skip", {"max_norm": 5.0, "skip_update_on_spike": True}),
        ("skip, no max", {"max_norm": np.inf, "skip_update_on_spike": True}),
    ],
)
def test_zclip_is_the_authors(name, arguments):
    assert_equal(zclip(**arguments), without_small_term(stored(f"zclip, {name}: gradient"), "tree"))


@pytest.mark.parametrize("percentile", [10, 90])
def test_autoclip_with_a_long_window_is_the_authors(percentile):
    expected = without_small_term(stored(f"autoclip, {percentile}: gradient"), "tree")
    assert_equal(novoclip.autoclip(float(percentile), window=40), expected)


@pytest.mark.parametrize(("name", "per"), [("tensor", "tensor"), ("global", "tree")])
def test_autoclip_without_the_current_norm_is_the_packaged_one(name, per):
    expected = without_small_term(stored(f"autoclip, quantile, {name}: gradient"), per)
    assert_equal(novoclip.autoclip(90.0, window=10, include_current=False, per=per), expected)


@pytest.mark.parametrize(("window", "deviations"), [(12, 2.0), (6, 0.5)])
def test_deviations_are_levanters(window, deviations):
    rule = novoclip.clip_by_deviation(deviations, window=window, warmup=window // 2, learn="raw")
    assert_equal(rule, stored(f"historical norm, {window}: gradient"))


def test_adagc_is_the_packaged_one():
    # Its warm-up of 10 steps are 9, and its norm of the whole gradient is of float32.
    assert_equal(novoclip.adagc(1.05, lambda_abs=1.0, warmup=9), stored("adagc: gradient"), SINGLE)


def test_agc_per_unit_is_timms_and_per_tensor_dreamers():
    assert_equal(novoclip.agc(0.1), stored("agc, unit: gradient"))
    assert_equal(novoclip.agc(0.3, per="tensor"), stored("agc, tensor: gradient"))


@pytest.mark.parametrize("decay", [0.999, 0.9])
def test_adaclip_and_adagn_are_the_authors(decay):
    assert_equal(novoclip.adaclip(decay), stored(f"stablespam, {decay}, adaclip: gradient"))
    both = optax.chain(novoclip.adaclip(decay), novoclip.adagn())
    assert_equal(both, stored(f"stablespam, {decay}, adagn: gradient"))


def test_stable_spam_is_the_authors_until_its_moments_are_reset():
    # There a reset also sets back the counter that corrects the biases of the clips, though not their means.
    stable_spam = optax.chain(novoclip.adaclip(), novoclip.adagn(), novoclip.adam(1.0))
    assert_equal(stable_spam, stored("stablespam"))
    assert_equal(stable_spam, stored("stablespam, reset"), steps=slice(0, 11))


@pytest.mark.parametrize("threshold", [5000, 20])
def test_spam_is_the_authors(threshold):
    assert_equal(novoclip.spam(1.0, threshold=threshold), stored(f"spam, {threshold}, defaults"))
    short = novoclip.spam(1.0, threshold=threshold, reset_every=12, delay=3, warmup=4)
    assert_equal(short, stored(f"spam, {threshold}, reset"))


def test_stable_adamw_is_optimis():
    assert_equal(novoclip.stable_adamw(0.1, weight_decay=0.01), stored("stableadamw"))


def test_adopt_is_optaxs():
    assert_equal(novoclip.adopt(1.0), stored("adopt"))


def test_the_proportional_novoclip_with_two_deviations_is_adamwclip():
    descent = novoclip.novoclip(0.1, clipping=2.0, threshold="proportional", bias_correction=True, weight_decay=0.01)
    assert_equal(descent, stored("adamwclip, warmup"))
    # Without a warm-up its second moment of 0 cuts the first gradient off at 1e-10, and so the next ones.
    assert max(np.max(np.abs(step["b/scale"])) for step in stored("adamwclip")[:30]) < 0.2
    small = [np.abs(GRADIENTS[i]["b/scale"]) for i in range(37)]
    assert min(small) > 1e-4


@pytest.mark.parametrize("alpha", [1, 1.5])
def test_acclip_is_its_port_to_torch(alpha):
    assert_equal(novoclip.acclip(1.0, alpha=alpha), stored(f"acclip, alpha {alpha:g}, mod 0"))


def test_soft_spectral_clip_is_the_authors_for_matrices_and_long_vectors():
    expected = stored("spectra, 40 iterations: gradient")
    rule = novoclip.clip_by_spectral_norm(1.0, shape="algebraic")
    for found, wanted, gradient in zip(run(rule), expected, GRADIENTS, strict=True):
        near = 1e-9 * np.max(np.abs(wanted["a/kernel"]))  # 40 steps of Newton's iteration
        np.testing.assert_allclose(found["a/kernel"], wanted["a/kernel"], rtol=0, atol=near)
        if length([gradient["a/bias"]]) > 1:
            np.testing.assert_allclose(found["a/bias"], wanted["a/bias"], rtol=PRECISION)
        else:  # theirs jumps at the threshold
            np.testing.assert_allclose(wanted["a/bias"], gradient["a/bias"], rtol=PRECISION)
            assert length([found["a/bias"]]) < length([gradient["a/bias"]])


def test_delta_gclip_is_the_authors():
    descent = optax.chain(novoclip.delta_gclip(1.0, delta=0.1), novoclip.sgd(0.5))
    assert_equal(descent, stored("delta clip"))


@pytest.mark.parametrize(("name", "absolute"), [("defaults", 1e-7), ("loose, standard accumulator", 0.01)])
def test_clippy_is_the_authors_behind_their_adagrad(name, absolute):
    total = {leaf: np.full_like(value, 0.1) for leaf, value in PARAMS.items()}
    steps = []
    for gradient in GRADIENTS:
        after = {leaf: total[leaf] + gradient[leaf] ** 2 for leaf in total}
        used = after if "standard" in name else total
        steps.append({leaf: -gradient[leaf] / np.sqrt(used[leaf] + 1e-7) for leaf in total})
        total = after
    rule = novoclip.clippy(0.1, absolute, floor=0.0)
    for found, wanted in zip(run(rule, steps), stored(f"clippy, {name}"), strict=True):
        for leaf, value in wanted.items():
            # There it is the difference of parameters.
            np.testing.assert_allclose(found[leaf], value, rtol=1e-9, atol=1e-15)
