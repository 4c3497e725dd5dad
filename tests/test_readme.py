"""What README's code says that it does, it does."""

from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import novoclip

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PARAMS = {"body": jnp.ones((3, 2)), "head": jnp.ones(4)}


def steps_of(optimizer, sizes, params=PARAMS):
    """For gradients of these sizes in turn: updates and metrics of each step, compiled once."""

    def step(state, size):
        updates, state = optimizer.update(jax.tree.map(lambda leaf: size * leaf, PARAMS), state, params)
        return state, (updates, novoclip.metrics(state))

    _, (updates, report) = jax.jit(lambda: jax.lax.scan(step, optimizer.init(params), jnp.array(sizes)))()
    return jax.tree.map(np.asarray, updates), {name: np.asarray(value) for name, value in report.items()}


def size_of(updates):
    return np.sqrt(sum(np.sum(np.square(leaf[-1])) for leaf in updates.values()))


NORM = np.sqrt(10.0)  # of PARAMS


def spikes_are_clipped_at_a_percentile(code, names):
    _, report = steps_of(names["optimizer"], [1.0] * 19 + [1000.0])
    assert report["clip/clipped"].tolist() == [0] * 19 + [1]
    # Of 20 norms, those at 1.7 steps from the largest: all but the spike.
    np.testing.assert_allclose(report["clip/limit"][-1], NORM, rtol=1e-5)


def each_line_has_its_blocks(code, names):
    found = [eval(line.split("  #")[0], names) for line in code.splitlines() if line.startswith("novoclip.")]
    params = {"a": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, "c": {"w": jnp.ones(4)}}
    states = [jax.eval_shape(rule.init, params) for rule in found]
    assert [getattr(state.norms, "shape", None) for state in states] == [(), (3,), (3,), None, (2,)]
    # "a/w" has two units, and "a/b" and "c/w" one each.
    assert sum(np.prod(slot.shape, dtype=int) for slot in jax.tree.leaves(states[2].limit_state.slot)) == 4
    assert jax.tree.leaves(states[3].limit_state)[-1].shape[:1] in ((4,), (3,))


def the_head_is_excluded_and_the_tighter_limit_holds(code, names):
    assert names["all_but_the_head"]({"body": 1, "head": 1}) == {"body": True, "head": False}
    _, report = steps_of(names["optimizer"], [0.01, 0.01, 100.0, 100.0])
    # The 90th percentile of the norms, or 1 where that is less.
    np.testing.assert_allclose(report["clip/limit"][:2], [0.01 * NORM] * 2, rtol=1e-5)
    np.testing.assert_allclose(report["clip/limit"][2:], [1.0, 1.0])
    assert int(report["clip/clipped"][-1]) == 2


def spikes_and_nan_are_skipped(code, names):
    updates, report = steps_of(names["optimizer"], [*(1.0 + 0.01 * (i % 3) for i in range(80)), 1000.0, np.nan])
    assert report["spikes/skipped"][-3:].tolist() == [0, 1, 2]
    assert all(not np.any(leaf[-2:]) and np.all(leaf[:-2]) for leaf in updates.values())


def adam_clips_first_and_decays(code, names):
    updates, report = steps_of(names["optimizer"], [1.0] * 19 + [1000.0])
    assert report["clip/clipped"].tolist() == [0] * 19 + [1]
    # The rate times the direction, which is 1 at first, and a tenth of the parameter.
    np.testing.assert_allclose(updates["body"][0], -3e-4 * 1.1, rtol=1e-4)
    np.testing.assert_allclose(updates["body"][-1], -3e-4 * 1.1, rtol=1e-2)


def rates_are_what_the_comments_say(code, names):
    rates, scope = [], {}
    for part in code.split("\n\n"):
        for statement in re.split(r"\n(?=rate|optimizer)", part):
            exec(statement, scope)
            if statement.startswith("rate"):
                rates.append(scope["rate"])
    found = [
        float(rate(step) if callable(rate) else rate)
        for rate, step in zip(rates, [7, 1500, 100, 10_000, 2000, 0, 0], strict=True)
    ]
    np.testing.assert_allclose(found, [0.1 * 0.999**7, 0.01, 0.05, 0, 1e-3, 0.4, 0.02], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(float(rates[1](2500)), 0.001, rtol=1e-5)
    np.testing.assert_allclose(float(rates[4](999)), 0.5e-3, rtol=1e-5)
    plateau, params = scope["plateau"], jnp.ones(2)
    step = jax.jit(lambda state: plateau.update(params, state, params, value=jnp.float32(1.0)))
    state, sizes = plateau.init(params), []
    for _ in range(13):
        updates, state = step(state)
        sizes.append(float(updates[0]))
    np.testing.assert_allclose([sizes[0], sizes[-1]], [-0.1, -0.01], rtol=1e-5)
    updates, _ = scope["by_hand"].update(params, scope["state"], params)
    np.testing.assert_allclose(updates, -1e-4, rtol=1e-4)


def each_tensor_is_held_at_twice_its_mean(code, names):
    _, report = steps_of(names["optimizer"], [1.0, 1.0, 1000.0, 1000.0])
    largest = np.sqrt(6.0)
    np.testing.assert_allclose(report["clip/limit_max"][1:3], [2 * largest] * 2, rtol=1e-5)
    # Of the spike, the mean learns as much as comes through: 0.98 + 0.02 * 2.
    np.testing.assert_allclose(report["clip/limit_max"][3], 2 * 1.02 * largest, rtol=1e-5)
    assert int(report["clip/clipped"][-1]) == 2


def transforms_pass_the_contract(code, names):
    assert code.count("check_contract(") == 2  # which has raised nothing


def experts_count_on_every_device_and_the_rest_once(code, names):
    gradients = {"experts": jnp.full((4, 1), 3.0), "rest": jnp.full((4, 1), 8.0)}

    def norm(gradients):
        rule = names["rule"]
        _, state = rule.update(gradients, rule.init(gradients), gradients)
        return novoclip.metrics(state)["clip/norm"]

    np.testing.assert_allclose(jax.vmap(norm, axis_name="devices")(gradients), [10.0] * 4)


# For each block, words that are only there, and what it must do.
EFFECTS = {
    "was: optax.clip_by_global_norm": spikes_are_clipped_at_a_percentile,
    "one limit for the whole gradient": each_line_has_its_blocks,
    "def all_but_the_head": the_head_is_excluded_and_the_tighter_limit_holds,
    "novoclip.skip_spikes(optax.chain(": spikes_and_nan_are_skipped,
    "novoclip.adam(3e-4, weight_decay=0.1": adam_clips_first_and_decays,
    "optax.exponential_decay": rates_are_what_the_comments_say,
    "def times_the_mean": each_tensor_is_held_at_twice_its_mean,
    "check_contract(": transforms_pass_the_contract,
    "novoclip.across_shards": experts_count_on_every_device_and_the_rest_once,
}


def effect_of(code):
    found = [effect for words, effect in EFFECTS.items() if words in code]
    assert len(found) == 1, f"tests/test_readme.py must say what this block does:\n{code}"
    return found[0]


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_code_does_what_it_says(code):
    names = {}
    exec(code, names)
    effect_of(code)(code, names)
