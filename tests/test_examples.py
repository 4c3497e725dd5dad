"""The examples run, as a reader would run them, and their output says what it should."""

import csv
import importlib
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from novoclip.catalog import CATALOG
from tests.programs import HANG, ROOT, flags


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


@pytest.fixture
def train_little(demo, monkeypatch, capsys):
    """The demo with a model that is compiled in a moment: a function of its arguments that returns its output."""
    for name, value in {"LENGTH": 16, "BATCH": 8, "WIDTH": 16, "LAYERS": 1, "HEADS": 1}.items():
        monkeypatch.setattr(demo("storm_training"), name, value)
    monkeypatch.setenv("COLUMNS", "120")

    def trained(arguments, out):
        assert demo("train_lm").main([*arguments.split(), "--log-every", "10", "--out", str(out)]) == 0
        return capsys.readouterr().out

    return trained


def command(name, *arguments):
    return [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]


def environment():
    # One device, as outside the tests.
    return os.environ | {"XLA_FLAGS": flags(), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}", "COLUMNS": "120"}


def output(name, *arguments):
    result = subprocess.run(command(name, *arguments), env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows_of(text):
    """The rows of the final table, by run: the cells after the name."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    return {name: cells for name, *cells in rows}


def history_of(path):
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


@pytest.fixture
def printed(demo, capsys):
    """A function that runs an example in this process, and returns what it prints."""

    def run(name):
        demo(name).main()
        return capsys.readouterr().out

    return run


def test_flax_train_state(printed):
    text = printed("flax_train_state")
    (alone, behind) = re.findall(r"(Adam.*?): distance from the true curve \S+ -> (\S+)", text)
    assert float(behind[1]) < 0.1 < float(alone[1])
    assert re.search(r"clip/clipped +\d{2,}", text)


def test_data_parallel():
    found = re.search(r"8 devices: distance from the true curve (\S+) -> (\S+)", output("data_parallel"))
    before, after = map(float, found.groups())
    assert after < before / 3


def test_nnx_optimizer(printed):
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", printed("nnx_optimizer"))]
    assert losses[0] > 4
    assert losses[-1] < 2.5


def test_own_rule(printed):
    text = printed("own_rule")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", text)]
    assert losses[-1] < losses[0] / 100
    assert re.search(r"^\d+ steps of 1000 had a tensor clipped", text, re.MULTILINE)


def test_float16_training(printed):
    found = re.findall(r"scale +(\d+), (\d+) skipped, loss (\S+)", printed("float16_training"))
    assert float(found[-1][2]) < float(found[0][2])
    assert int(found[-1][1]) > 0
    assert all(float(scale) < 2**20 for scale, _, _ in found)


def test_train_lm_survives_nan_with_the_rule_only(train_little, tmp_path):
    optimizer, rule = "--optimizer adam:learning_rate=0.03", "--clip clip_by_global_norm:max_norm=1"
    text = train_little(f"--steps 30 --nan 25 {optimizer} {rule}", tmp_path / "new" / "runs")
    rows = rows_of(text)
    names = ["clean: Adam alone", "storm: Adam alone", "storm: optax.clip_by_global_norm(1.0)"]
    assert list(rows)[-4:] == [*names, "storm: novoclip.clip_by_global_norm(1)"]
    clean, alone, usual, ruled = list(rows.values())[-4:]
    assert alone[0] == usual[0] == "nan (lost)"
    assert max(float(clean[0]), float(ruled[0])) < 4
    assert int(ruled[1]) >= 4
    assert float(ruled[3]) == 1
    assert float(alone[3].replace(",", "")) > 100

    picture = tmp_path / "new" / "runs" / "storm_clip_by_global_norm_max_norm=1_adam_learning_rate=0.03_nan=25.png"
    assert str(picture) in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = history_of(picture.with_suffix(".csv"))
    assert [line["step"] for line in lines if line["gradient_times"] == "1000.0"] == ["13", "14", "15", "22"] * 3
    assert {line["loss"] for line in lines[55:60]} == {"nan"}


def test_train_lm_compiles_each_program_once_for_all_runs_and_seeds(train_little, tmp_path):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, fun_name="", **about: compiled.append(fun_name) if "backend_compile" in event else None
    )
    shown = train_little("--steps 20 --seeds 2 --clip protect", tmp_path)
    # All runs share the gradients; the clean and the stormed run without a rule share the update.
    names = [name.removeprefix("jit(").removesuffix(")") for name in compiled]
    assert [names.count(name) for name in ("_gradients", "_validate", "update")] == [1, 1, 3]
    skipped, let_through = rows_of(shown)["storm: novoclip.protect(Adam)"][2:]
    assert int(skipped) >= 4
    assert float(let_through) < 100
    assert "mean of 2 seeds" in shown
    assert {line["seed"] for line in history_of(tmp_path / "storm_protect.csv")} == {"0", "1"}


@pytest.mark.full
def test_train_lm_with_a_rule_per_element_and_a_text_of_ones_own(train_little, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Ünder the sea, in the storm. " * 40, encoding="utf-8")
    shown = train_little(f"--steps 20 --text {text} --clip clip_by_value", tmp_path)
    assert "1,160 characters, 15 of them different" in shown
    assert {line["clip_limit"] for line in history_of(tmp_path / "storm_clip_by_value.csv")} == {""}


def test_train_lm_never_overwrites_what_another_rule_drew(demo):
    rules = ["autoclip:percentile=90", "autoclip:percentile=10", "zclip", "zclip --optimizer sgd", "zclip --nan 3"]
    read, parser = demo("train_lm").parse_options, demo("train_lm").Parser
    stems = [read(parser(), f"--clip {rule}".split()).stem for rule in rules]
    assert len(set(stems)) == len(stems)
    assert stems[0] == "storm_autoclip_percentile=90"


def test_train_lm_lists_what_it_takes(demo, capsys):
    assert demo("train_lm").main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[0]: line for line in lines if line.startswith("  ") and line[2] != " "}
    assert "percentile=,window=1000," in lines[lines.index(listed["autoclip"]) + 1]
    taken = {entry.name: entry.make for entry in CATALOG if entry.place != "shards"}
    directions = {name for name in taken if name.startswith("scale_by_") and name != "scale_by_trust_ratio"} | {"trace"}
    assert set(listed) == set(taken) - directions, "see LEARNING_RATES and RULES in examples/storm_rules.py"
    assert all(line.endswith(taken[name].__doc__.splitlines()[0]) for name, line in listed.items())


def test_train_lm_speaks_before_it_imports_jax():
    code = "import sys, train_lm; sys.exit('jax' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT / "examples", check=False).returncode == 0


# Tests that run in the background ignore interrupts, and what they start would, too.
INTERRUPTIBLE = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_train_lm_keeps_what_it_has_when_interrupted(tmp_path):
    python, *arguments = command("train_lm", "--steps", 100_000, "--log-every", 10, "--out", tmp_path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([python, "-c", INTERRUPTIBLE, *arguments], env=environment(), **pipes) as process:
        hang = threading.Timer(HANG, process.kill)
        hang.start()
        assert any(" step " in line for line in process.stdout)  # reads no further than the first
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
        hang.cancel()
    assert process.returncode == 130, errors
    assert not errors
    assert [cells[0] for cells in list(rows_of(rest).values())[-4:]] == ["not measured"] * 4
    (history,) = tmp_path.glob("storm_*.csv")
    assert len(history_of(history)) >= 10
    assert history.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--clip clop", "no rule 'clop'; did you mean 'zclip'?"),
        ("--clip adam", "no rule 'adam'; it is an optimizer: --optimizer adam"),
        ("--clip autoclip:persentile=90", "autoclip has no argument 'persentile'; did you mean 'percentile'?"),
        ("--clip autoclip:percentile=90,per=element", "keeps 1000 copies of the parameters"),
        ("--clip clip_by_norm:per=tensor", "clip_by_norm needs max_norm=..."),
        ("--clip uclip:inner=zclop", "no rule 'zclop'; did you mean 'zclip'?"),
        ("--optimizer adamm", "no optimizer 'adamm'; did you mean 'adam'?"),
        ("--optimizer zclip", "no optimizer 'zclip'; it is a rule: --clip zclip"),
        ("--optimizer adam:b1=2", "b1 must be a number in [0, 1)"),
        ("--steps 19", "--steps must be at least 20"),
        ("--seeds 0", "--seeds must be at least 1"),
        ("--steps 50 --nan 51", "--nan must be a step from 1 to 50"),
        ("--text missing.txt", "--text missing.txt: No such file"),
        ("--text short.txt", "--text short.txt: needs at least 1000 characters, has 9"),
        ("--text binary.txt", "--text binary.txt: not UTF-8, at byte 0"),
        ("--out short.txt", "--out short.txt: File exists"),
        ("--clap autoclip", "no option '--clap'; did you mean '--clip'?"),
    ],
)
def test_train_lm_answers_bad_arguments_in_one_line(demo, arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("too short", encoding="utf-8")
    Path("binary.txt").write_bytes(b"\xff" * 2000)
    with pytest.raises(SystemExit) as stopped:
        demo("train_lm").main(arguments.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert reason in error
    assert error.count("\n") == 1


def test_train_lm_reads_a_rule_with_its_arguments(demo):
    calls = {
        "zclip:max_norm=inf,per=tensor": "zclip(max_norm=inf, per='tensor')",
        "autoclip:percentile=5e1,window=20": "autoclip(50.0, window=20)",
        "clip_by_norm": "clip_by_norm(0.5)",
        "skip_spikes:limit=9": "skip_spikes(Adam, limit=9)",
    }
    for text, call in calls.items():
        assert demo("storm_rules").parse_rule(text).call("Adam") == f"novoclip.{call}"


def test_train_lm_makes_every_optimizer(demo):
    params = np.ones(2, np.float32)
    for name in demo("storm_rules").OPTIMIZERS:
        transform = demo("storm_rules").parse_optimizer(f"{name}:learning_rate=0.5").transform
        state = transform.init(params)
        for _ in range(2):  # the first step of some only fills their state
            updates, state = jax.jit(transform.update)(params, state, params)
        assert np.all(np.asarray(updates) < 0), name


def test_quickstart_ends_at_two_and_zero():
    last = re.search(r"step 1000: w = (\S+), b = (\S+), loss", output("quickstart"))
    np.testing.assert_allclose([float(last[1]), float(last[2])], [2.0, 0.0], atol=1e-3)


def test_the_storm_has_room_in_the_shortest_training(demo):
    faults = demo("storm_training").make_faults(20, 20, stormed=True)
    happens = [np.flatnonzero(at).tolist() for at in (faults.scale == 1000, faults.random_targets)]
    assert happens == [[8, 9, 10, 14], [11, 12, 13]]
    assert np.isnan(faults.scale[19])
