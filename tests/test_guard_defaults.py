"""The default limits of `skip_spikes`, on records that they were not chosen by."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import guards
import novoclip

RECORDS = guards.synthetic()
DEFAULT = novoclip.skip_spikes(optax.identity())


@pytest.fixture(scope="module")
def skips():
    return guards.skipped(DEFAULT, RECORDS, losses=True)


def test_spikes_are_skipped_and_calm_steps_are_not(skips):
    caught = spikes = 0
    for record, skip in zip(RECORDS, skips, strict=True):
        spike, calm = guards.spikes_and_calm(record.norms)
        assert np.mean(skip[calm]) <= 0.01, record.name
        caught, spikes = caught + np.sum(skip & spike), spikes + np.sum(spike)
    assert caught >= 0.95 * spikes


def test_it_works_from_the_eighth_step_on(skips):
    for record, skip in zip(RECORDS, skips, strict=True):
        assert not np.any(skip[:7]), record.name
        assert skip[8], record.name
    eight = np.array([*[1.0] * 7, 10.0, 1.0, *[1.0] * 7])
    record = guards.Record("a spike in step 8", eight, np.full(16, 2.0))
    assert np.flatnonzero(guards.skipped(DEFAULT, [record], losses=True)[0]).tolist() == [7]


def test_a_run_that_diverges_is_skipped_from_its_first_spike_on():
    generator = np.random.default_rng(0)
    rise = 10.0 ** np.arange(1, 13)
    norms = np.concatenate([np.exp(0.2 * generator.normal(size=40)), rise, np.full(30, np.nan)])
    record = guards.Record("diverging", norms, np.where(np.isnan(norms), np.nan, 0.5))
    skip = guards.skipped(DEFAULT, [record], losses=True)[0]
    assert np.flatnonzero(skip).tolist() == list(range(40, norms.size))


def test_spikes_and_calm_rows_are_those_of_their_definitions():
    norms = np.ones(60)
    norms[[7, 8, 30, 40]] = 100.0, 100.0, 5.01, 3.0
    norms[50] = np.nan
    spike, calm = guards.spikes_and_calm(norms)
    assert np.flatnonzero(spike).tolist() == [8, 30]
    assert np.flatnonzero(~calm).tolist() == [7, 8, 30, 40, 50]


def test_a_warm_up_of_the_running_mean_learns_and_does_not_limit():
    generator = np.random.default_rng(1)
    norms = np.exp(generator.normal(size=40))
    limit, mean, expected = novoclip.limits.running_mean(3.0, decay=0.9, warmup=7), 0.0, []
    for number, norm in enumerate(norms):
        bound = 3 * mean if number else np.inf
        expected.append(bound if number >= 7 else np.inf)
        mean += max(0.1, 1 / (number + 1)) * (min(norm, bound) - mean)

    def step(state, norm):
        bound, state = limit.update(norm, state, step=jnp.int32(0))
        return state, bound

    state = limit.init(jnp.zeros(()))
    np.testing.assert_allclose(jax.lax.scan(step, state, jnp.float32(norms))[1], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="warmup must be an integer of at least 1"):
        novoclip.limits.running_mean(warmup=0)
