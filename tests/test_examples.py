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

from tests.programs import HANG, ROOT, flags


@pytest.fixture
def train_lm(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("train_lm")


@pytest.fixture
def train_little(train_lm, monkeypatch, capsys):
    """The program, with a model that is compiled in a moment: a function of its arguments that returns its output."""
    for name, value in {"LENGTH": 16, "BATCH": 8, "WIDTH": 16, "LAYERS": 1, "HEADS": 1}.items():
        monkeypatch.setattr(train_lm, name, value)
    monkeypatch.setenv("COLUMNS", "120")

    def trained(*arguments):
        assert train_lm.main(list(map(str, arguments))) == 0
        return capsys.readouterr().out

    return trained


def command(name, *arguments):
    return [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]


def environment():
    # One device, as outside the tests.
    return os.environ | {"XLA_FLAGS": flags(), "PYTHONPATH": str(ROOT), "COLUMNS": "120"}


def run(name, *arguments):
    return subprocess.run(command(name, *arguments), env=environment(), capture_output=True, text=True, check=False)


def output(name, *arguments):
    result = run(name, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows_of(text):
    """The rows of the final table, by optimizer: the cells after the name."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]
    return {name: cells for name, *cells in rows}


def history_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_flax_train_state():
    text = output("flax_train_state")
    (alone, behind) = re.findall(r"(Adam.*?): distance from the true curve \S+ -> (\S+)", text)
    assert float(behind[1]) < 0.1 < float(alone[1])
    assert re.search(r"clip/clipped +\d{2,}", text)


def test_data_parallel():
    found = re.search(r"8 devices: distance from the true curve (\S+) -> (\S+)", output("data_parallel"))
    before, after = map(float, found.groups())
    assert after < before / 3


def test_nnx_optimizer():
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", output("nnx_optimizer"))]
    assert losses[0] > 4
    assert losses[-1] < 2.5


def test_own_rule():
    text = output("own_rule")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", text)]
    assert losses[-1] < losses[0] / 100
    assert re.search(r"^\d+ steps of 1000 had a tensor clipped", text, re.MULTILINE)


def test_train_lm_survives_nan_behind_the_rule_only(train_little, tmp_path):
    out = tmp_path / "new" / "runs"
    optimizer, rule = ("--optimizer", "adam:learning_rate=0.03"), ("--clip", "clip_by_global_norm")
    text = train_little("--steps", 30, "--log-every", 10, "--nan", 25, *optimizer, *rule, "--out", out)
    rows = rows_of(text)
    assert rows["Adam alone"][1:3] == ["nan (did not survive)", "-"]
    clean, stormed, clipped, seen, let_through = rows["Adam + clip_by_global_norm"]
    assert float(clean) < 4
    assert float(stormed) < 4
    assert int(clipped) >= 4
    assert float(seen.replace(",", "")) > 100
    assert float(let_through) == 1
    assert float(rows["Adam alone"][0]) < 4

    picture, history = out / "storm_clip_by_global_norm.png", out / "storm_clip_by_global_norm.csv"
    assert str(picture) in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = history_of(history)
    assert len(lines) == 4 * 30
    assert [line["step"] for line in lines if line["gradient_times"] == "1000.0"] == ["13", "14", "15", "22"] * 2
    assert {line["loss"] for line in lines[25:30]} == {"nan"}
    assert all(float(line["loss"]) < 10 for line in lines[30:60])


def test_train_lm_with_a_rule_per_element_and_a_text_of_ones_own(train_little, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Ünder the sea, in the storm. " * 40, encoding="utf-8")
    shown = train_little("--steps", 20, "--log-every", 10, "--text", text, "--clip", "clip_by_value", "--out", tmp_path)
    assert rows_of(shown)["Adam + clip_by_value"][2] == "not counted"
    assert "1,160 characters, 15 of them different" in shown
    assert {line["rule_limit"] for line in history_of(tmp_path / "storm_clip_by_value.csv")} == {""}


# Tests that run in the background ignore interrupts, and what they start would, too.
INTERRUPTIBLE = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_train_lm_keeps_what_it_has_when_interrupted(tmp_path):
    python, *arguments = command("train_lm", "--steps", 100_000, "--log-every", 10, "--out", tmp_path)
    with subprocess.Popen(
        [python, "-c", INTERRUPTIBLE, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        hang = threading.Timer(HANG, process.kill)
        hang.start()
        first = next(line for line in process.stdout if " step " in line)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()
        hang.cancel()
    assert process.returncode == 130, errors
    assert not errors
    assert "loss" in first
    assert rows_of(rest)["Adam alone"][:2] == ["not measured", "not measured"]
    assert len(history_of(tmp_path / "storm_autoclip.csv")) >= 10
    assert (tmp_path / "storm_autoclip.png").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--clip", "clop"], "no such rule; choose from clip_by_value, "),
        (["--clip", "autoclip:persentile=90"], "unexpected keyword argument 'persentile'"),
        (["--clip", "autoclip:percentile=ninety"], "percentile must be a number"),
        (["--clip", "autoclip:percentile=190"], "percentile must be a number in [0, 100]"),
        (["--clip", "clip_by_norm:per=tensor"], "missing 1 required positional argument: 'max_norm'"),
        (["--clip", "autoclip:90"], "expected key=value, got '90'"),
        (["--optimizer", "adamw"], "no such optimizer; choose from sgd, momentum, "),
        (["--optimizer", "adam:b1=2"], "b1 must be a number in [0, 1)"),
        (["--steps", "many"], "invalid int value: 'many'"),
        (["--steps", "19"], "--steps must be at least 20"),
        (["--log-every", "0"], "--log-every must be at least 1"),
        (["--steps", "50", "--nan", "51"], "--nan must be a step from 1 to 50"),
        (["--nan", "0"], "--nan must be a step from 1 to 1000"),
        (["--text", "missing.txt"], "No such file"),
        (["--text", "short.txt"], "needs at least 1000 characters, has 9"),
        (["--text", "binary.txt"], "can't decode"),
        (["--out", "short.txt"], "File exists"),
        (["--clap", "autoclip"], "unrecognized arguments: --clap"),
    ],
)
def test_train_lm_answers_bad_arguments_in_one_line(train_lm, arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("too short", encoding="utf-8")
    Path("binary.txt").write_bytes(b"\xff" * 2000)
    with pytest.raises(SystemExit) as stopped:
        train_lm.main(arguments)
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert reason in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("zclip:max_norm=inf,per=tensor", {"max_norm": float("inf"), "per": "tensor"}),
        ("autoclip:percentile=5e1,window=20", {"percentile": 50.0, "window": 20}),
        ("clip_by_value:max_delta=1,count=True", {"max_delta": 1, "count": True}),
        ("clip_by_norm", {"max_norm": 0.5}),
    ],
)
def test_train_lm_reads_a_rule_with_its_arguments(train_lm, text, arguments):
    assert train_lm.parse_rule(text)[:2] == (text.partition(":")[0], arguments)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad", "rmsprop", "adam", "amsgrad", "novograd", "novoclip"])
def test_train_lm_makes_every_optimizer(train_lm, name):
    found, descent = train_lm.parse_optimizer(f"{name}:learning_rate=0.5,nonfinite=skip")
    assert found == name
    updates, _ = jax.jit(descent.update)(np.ones(2, np.float32), descent.init(np.ones(2, np.float32)))
    assert np.all(np.asarray(updates) < 0)


@pytest.mark.full
def test_train_lm_with_another_optimizer(tmp_path):
    shown = output(
        "train_lm",
        "--steps",
        20,
        "--optimizer",
        "novoclip:threshold=proportional",
        "--clip",
        "zclip",
        "--out",
        tmp_path,
    )
    assert list(rows_of(shown))[-2:] == ["Novoclip alone", "Novoclip + zclip"]
    assert (tmp_path / "storm_novoclip_zclip.png").exists()


def test_quickstart_ends_at_two_and_zero():
    last = re.search(r"step 1000: w = (\S+), b = (\S+), loss", output("quickstart"))
    np.testing.assert_allclose([float(last[1]), float(last[2])], [2.0, 0.0], atol=1e-3)


def test_the_storm_has_room_in_the_shortest_training(train_lm):
    weather = train_lm.make_weather(20, 20, stormed=True)
    assert [int(i) for i in (weather.scale == 1000).nonzero()[0]] == [8, 9, 10, 14]
    assert [int(i) for i in weather.corrupt.nonzero()[0]] == [11, 12, 13]
    assert np.isnan(weather.scale[19])
