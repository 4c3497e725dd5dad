"""The code of the README and of the pages does what they say, and their links lead somewhere."""

from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (
    *("checkpoints", "choosing", "devices", "guards", "migration", "monitoring", "optimizers_guide", "own_rules"),
    *("replay", "sixteen_bits"),
)
PRINTED = re.compile(r"^ *print\(.*\)(?:  |\n)# (.*)$", re.MULTILINE)
PARAMS = {"body": jnp.ones((3, 2)), "head": jnp.ones(4)}
NORM = np.sqrt(10.0)  # of PARAMS


def blocks_of(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def page_of(name):
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


BLOCKS = blocks_of(README)


def steps_of(optimizer, sizes, params=PARAMS):
    """For gradients of these sizes in turn: updates and metrics of each step, compiled once."""

    def step(state, size):
        updates, state = optimizer.update(jax.tree.map(lambda leaf: size * leaf, PARAMS), state, params)
        return state, (updates, novoclip.metrics(state))

    _, (updates, report) = jax.jit(lambda: jax.lax.scan(step, optimizer.init(params), jnp.array(sizes)))()
    return jax.tree.map(np.asarray, updates), {name: np.asarray(value) for name, value in report.items()}


def spikes_and_nan_are_skipped(names):
    updates, report = steps_of(names["optimizer"], [*(1.0 + 0.01 * (i % 3) for i in range(20)), 3.5, 1000.0, np.nan])
    assert report["spikes/clipped"][-3:].tolist() == [1, 1, 1]
    assert report["spikes/skipped"][-3:].tolist() == [0, 1, 2]
    assert all(not np.any(leaf[-2:]) and np.all(leaf[:-2]) for leaf in updates.values())


def it_is_optaxs_chain(names):
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(3e-4, weight_decay=0.1))
    sizes = [0.1, 100.0, 1.0]
    gradients = [jax.tree.map(lambda leaf, size=size: size * leaf, PARAMS) for size in sizes]
    found, _ = steps_of(names["optimizer"], sizes)
    theirs = compiled(theirs)
    state = theirs.init(PARAMS)
    for step, gradient in enumerate(gradients):
        updates, state = theirs.update(gradient, state, PARAMS)
        np.testing.assert_allclose(found["body"][step], updates["body"], rtol=1e-5)


def each_name_has_its_threshold(names):
    leaves = {"embed": jnp.ones(4), "layer": {"kernel": jnp.ones(4), "bias": jnp.ones(4)}}
    rule = compiled(names["rule"])
    updates, _ = rule.update(leaves, rule.init(leaves))
    found = jax.tree.map(lambda leaf: float(jnp.linalg.norm(leaf)), updates)
    assert found == {"embed": pytest.approx(0.1), "layer": {"kernel": pytest.approx(1), "bias": pytest.approx(0.2)}}


def spikes_are_clipped_at_a_percentile(names):
    _, report = steps_of(names["optimizer"], [1.0] * 19 + [1000.0])
    assert report["clip/clipped"].tolist() == [0] * 19 + [1]
    # Of 20 norms, the percentile is 1.7 steps from the largest: among those before the spike.
    np.testing.assert_allclose(report["clip/limit"][-1], NORM, rtol=1e-5)


def the_small_tensor_keeps_its_step(names):
    gradients = {"large": jnp.full(4096, 2e11), "small": jnp.ones(4096)}
    optimizer = compiled(names["optimizer"])
    updates, state = optimizer.update(gradients, optimizer.init(gradients))
    assert float(jnp.linalg.norm(updates["small"])) / 3e-4 == pytest.approx(64, rel=1e-3)
    assert float(novoclip.metrics(state)["clip/norm_max_fraction"]) == pytest.approx(1)


def it_prints_what_it_says(names):
    assert PRINTED.search("\n".join(BLOCKS))


# For each block of the README, words that are only there, and what it must do.
EFFECTS = {
    "novoclip.protect(": spikes_and_nan_are_skipped,
    "# was: optax.chain(": it_is_optaxs_chain,
    "report = novoclip.metrics": it_prints_what_it_says,
    "novoclip.clip_by_norm({": each_name_has_its_threshold,
    "novoclip.autoclip(90.0, window=1000)": spikes_are_clipped_at_a_percentile,
    'novoclip.record(per="tensor")': the_small_tensor_keeps_its_step,
}


def run(code, names, capsys):
    """Run a block, and compare what it prints with the comments after `print(...)`."""
    exec(code, names)
    assert capsys.readouterr().out.splitlines() == PRINTED.findall(code)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_code_does_what_it_says(code, capsys):
    names = {}
    run(code, names, capsys)
    found = [effect for words, effect in EFFECTS.items() if words in code]
    assert len(found) == 1, f"tests/test_readme.py must say what this block does:\n{code}"
    found[0](names)


def limits_and_blocks_are_as_described(names):
    # The 90th percentile of the norms, or 1 where that is less.
    _, report = steps_of(names["optimizer"], [0.01, 0.01, 100.0, 100.0])
    np.testing.assert_allclose(report["clip/limit"], [0.01 * NORM, 0.01 * NORM, 1.0, 1.0], rtol=1e-5)
    assert names["all_but_the_head"]({"body": 1, "head": 1}) == {"body": True, "head": False}
    (code,) = (code for code in blocks_of(page_of("choosing")) if code.startswith("novoclip.autoclip("))
    rules = [eval(line.split("  #")[0], names) for line in code.splitlines()]
    params = {"a": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, "c": {"w": jnp.ones(4)}}
    states = [jax.eval_shape(rule.init, params) for rule in rules]
    assert [getattr(state.norms, "shape", None) for state in states] == [(), (3,), (3,), None, (2,)]
    # "a/w" has two units, and "a/b" and "c/w" one each.
    assert sum(np.prod(slot.shape, dtype=int) for slot in jax.tree.leaves(states[2].limit_state.slot)) == 4


def rates_are_what_the_comments_say(names):
    (code,) = (code for code in blocks_of(page_of("optimizers_guide")) if "optax.exponential_decay" in code)
    rates, scope = [], dict(names)
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
    updates, _ = jax.jit(scope["by_hand"].update)(params, scope["state"], params)
    np.testing.assert_allclose(updates, -1e-4, rtol=1e-4)


def each_tensor_is_held_at_twice_its_mean(names):
    _, report = steps_of(names["optimizer"], [1.0, 1.0, 1000.0, 1000.0])
    largest = np.sqrt(6.0)
    np.testing.assert_allclose(report["clip/limit_max"][1:3], [2 * largest] * 2, rtol=1e-5)
    # Of the spike, the mean learns as much as comes through: 0.98 + 0.02 * 2.
    np.testing.assert_allclose(report["clip/limit_max"][3], 2 * 1.02 * largest, rtol=1e-5)
    assert int(report["clip/clipped"][-1]) == 2


# What pages say beside what they print.
OF_PAGES = {
    "choosing": limits_and_blocks_are_as_described,
    "optimizers_guide": rates_are_what_the_comments_say,
    "own_rules": each_tensor_is_held_at_twice_its_mean,
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks_of(page_of(page)):
        run(code, names, capsys)
    if page in OF_PAGES:
        OF_PAGES[page](names)
