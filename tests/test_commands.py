"""The command `novoclip`: exit codes, one line for each mistake, and what it prints."""

import functools
import json
from pathlib import Path
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from novoclip import catalog
from novoclip.commands import demo_command, demo_storm, main, replay_command, use_when, watch_command, watch_view
from novoclip.commands.parser import parse
from novoclip.replays import replay

ROOT = Path(__file__).parent.parent
RULES = {
    "novoclip.clip_by_running_mean(2.0)": novoclip.clip_by_running_mean(2.0),
    "novoclip.clip_by_global_norm(1e-3)": novoclip.clip_by_global_norm(1e-3),
}


@pytest.fixture
def log(tmp_path):
    norms = np.exp(0.1 * np.random.default_rng(0).normal(size=120))
    norms[[40, 90]] = 30.0
    path = tmp_path / "log.csv"
    rows = [f"{step},{3 - step / 100},{norm}" for step, norm in enumerate(norms.tolist())]
    path.write_text("\n".join(["step,loss,grad_norm", *rows]) + "\n")
    return path


@pytest.fixture(autouse=True)
def two_rules(monkeypatch):
    monkeypatch.setattr(replay_command, "replay", functools.partial(replay, rules=RULES))


def run(capsys, *argv):
    """Return the exit code and what was printed."""
    code = main([str(argument) for argument in argv])
    return code, *capsys.readouterr()


def refused(capsys, *argv):
    """Return the one line that a mistake gives."""
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert not out
    assert err.startswith("novoclip: ")
    assert err.count("\n") == 1
    return err


def test_replay_prints_what_was_read_the_rules_and_the_recommendation(capsys, log):
    code, out, err = run(capsys, "replay", log)
    assert code == 0
    assert not err
    assert out.startswith("log: 120 rows, steps 0 to 119, 2 spikes.")
    assert all(line in out for line in RULES)
    assert "\nRecommended: novoclip.clip_by_running_mean(2.0)\n" in out
    assert "catches 2 of 2 spikes" in out


def test_a_narrow_terminal_shows_fewer_figures(capsys, monkeypatch, log):
    monkeypatch.setattr("novoclip.commands.terminal.PIPE", 80)
    _, out, _ = run(capsys, "replay", log)
    assert "calm touched" in out
    assert "shrinkage" not in out
    assert all(f"{line} " in out for line in RULES)


def test_quiet_prints_the_line_alone(capsys, log):
    assert run(capsys, "replay", log, "--quiet") == (0, "novoclip.clip_by_running_mean(2.0)\n", "")


def test_json_has_all_figures_and_no_nan(capsys, log):
    code, out, _ = run(capsys, "replay", log, "--json", "--max-clipped", "5%")

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(out, parse_constant=refuse)
    assert code == 0
    assert found["record"]["spike_steps"] == [40, 90]
    assert found["wish"] == {"want": "spikes", "max_clipped": 0.05}
    assert found["recommended"] == "novoclip.clip_by_running_mean(2.0)"
    assert [rule["line"] for rule in found["rules"]] == list(RULES)
    assert found["rules"][0] | {"caught": 2, "spikes": 2, "skipped": 0, "adapts": None} == found["rules"][0]


@pytest.mark.parametrize("option", ["--quiet", "--json", "--want=spikes"])
def test_exit_code_1_means_that_nothing_can_be_recommended(capsys, log, option):
    log.write_text("\n".join(log.read_text().splitlines()[:31]) + "\n")
    code, out, err = run(capsys, "replay", log, option)
    assert code == 1
    assert "too short" in out + err
    if option == "--quiet":
        assert not out


def test_replay_writes_a_report_and_a_picture(capsys, log, tmp_path):
    pytest.importorskip("plotly")
    html, png = tmp_path / "report.html", tmp_path / "picture.png"
    code, out, _ = run(capsys, "replay", log, "--report", html, "--png", png)
    assert code == 0
    assert f"Written: {html}" in out
    assert html.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "does not exist" in refused(capsys, "replay", log, "--json", "--report", tmp_path / "no" / "x.html")


def test_names_from_a_log_are_no_markup_and_no_control_characters(capsys, log):
    path = log.rename(log.with_name("[red]a\x1b[31m.csv"))
    _, out, _ = run(capsys, "replay", path)
    assert out.startswith("[red]a [31m: 120 rows")
    _, out, _ = run(capsys, "watch", path, "--once")
    assert out.startswith("[red]a [31m  step 119")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["rplay", "x"], "did you mean replay?"),
        (["replay", "x", "--max-clip", "1"], "did you mean --max-clipped?"),
        (["replay", "x", "--nrom=a"], "did you mean --norm?"),
        (["replay", "x", "y"], "no further argument 'y'"),
        (["replay"], "RUN"),
        (["replay", "x", "--max-clipped", "500%"], "such as 5%"),
        (["replay", "x", "--json", "--quiet"], "not allowed with"),
        (["watch", "x", "--every", "0"], "positive number"),
        ([], "a sub-command is missing"),
        (["replay", "no/such.csv"], "No such file"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(capsys, argv, text):
    assert text in refused(capsys, *argv)


def test_what_a_log_or_a_wish_lacks_is_told_in_one_line(capsys, log):
    assert "spik" in refused(capsys, "replay", log, "--want", "spikse")
    refused(capsys, "replay", log, "--norm", "absent")
    log.write_text("step,grad_norm\n")
    refused(capsys, "replay", log)
    refused(capsys, "watch", log, "--once")


@pytest.mark.parametrize(
    ("package", "options"), [("rich", []), ("plotly", ["--report", "x"]), ("matplotlib", ["--png", "x"])]
)
def test_a_missing_package_is_told_before_the_work(capsys, monkeypatch, log, package, options):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(replay_command, "replay", lambda *_, **__: 1 / 0)
    options = [*options, "--quiet"] if options else options
    assert (
        refused(capsys, "replay", log, *options) == f"novoclip: this needs {package}: pip install 'novoclip[replay]'\n"
    )


def test_ctrl_c_leaves_no_traceback(capsys, monkeypatch, log):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(replay_command, "replay", interrupted)
    assert run(capsys, "replay", log) == (130, "", "")


def test_an_error_of_the_library_is_not_hidden(monkeypatch, log):
    monkeypatch.setattr(replay_command, "replay", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["replay", str(log)])


def test_watch_shows_the_last_row(capsys, log):
    code, out, _ = run(capsys, "watch", log, "--once")
    assert code == 0
    assert "step 119  120 rows" in out
    assert "loss 1.81" in out
    assert "spikes 2  in the last 120 rows 1.7 %" in out


def test_watch_waits_for_a_file_and_leaves_half_a_line(capsys, log, tmp_path):
    code, out, _ = run(capsys, "watch", tmp_path / "later.csv", "--once")
    assert code == 0
    assert "waiting for" in out
    log.write_text(log.read_text() + "120,1.5,9")
    _, out, _ = run(capsys, "watch", log, "--once")
    assert "step 119" in out
    log.write_text(log.read_text() + "99.5\n")
    _, out, _ = run(capsys, "watch", log, "--once")
    assert "step 120" in out
    assert "last norm 999.5" in out


def test_watch_follows_a_log_until_ctrl_c(capsys, monkeypatch, tmp_path):
    path = tmp_path / "log.jsonl"
    row = json.dumps({"step": 1, "grad_norm": 2.5}) + "\n"
    texts = iter(["", "{", row, row, None])

    def sleep(seconds):
        text = next(texts)
        if text is None:
            raise KeyboardInterrupt
        path.write_text(text)

    monkeypatch.setattr(time, "sleep", sleep)
    code, out, _ = run(capsys, "watch", path)
    assert code == 0
    assert out.index("does not exist yet") < out.index("waiting: ") < out.index("last norm 2.5")
    assert out.count("last norm 2.5") == 1, "printed when it changes"


def test_a_sparkline_has_one_character_for_each_norm():
    norms = np.array([1.0, 10.0, 100.0, np.nan, 0.0])
    assert watch_view.sparkline(norms) == "▁▅█!▁"
    assert watch_view.sparkline(np.array([2.0, 2.0])) == "▁▁"
    assert watch_view.sparkline(np.array([np.nan, 0.0])) == "!▁"


def test_rules_are_those_of_the_catalog(capsys):
    code, out, _ = run(capsys, "rules", "--json")
    found = json.loads(out)
    assert code == 0
    assert [rule["name"] for rule in found] == [entry.name for entry in catalog.CATALOG]
    assert all(rule["summary"].endswith(".") for rule in found)
    _, out, _ = run(capsys, "rules")
    assert all(entry.name in out for entry in catalog.CATALOG)


def test_when_to_use_a_rule_is_what_the_readme_says():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    names = {entry.name for entry in catalog.CATALOG}
    for name, text in use_when.USE_WHEN.items():
        assert name in names
        assert any(f"| {text} |" in row for row in rows), f"the README says something else of {name}"


def test_demo_passes_its_arguments_on(capsys, monkeypatch, tmp_path):
    called = []
    done = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(subprocess, "run", lambda argv, check: called.append(argv) or done)
    assert main(["demo", "--clip", "zclip", "--steps", "20"]) == 3
    assert called[0][1:] == [str(ROOT / "examples" / "train_lm.py"), "--clip", "zclip", "--steps", "20"]


def test_demo_of_an_installed_package_needs_no_clone(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(demo_command.novoclip, "__file__", str(tmp_path / "novoclip" / "__init__.py"))
    rules = {"adam": lambda: optax.adam(3e-3), "protect": lambda: novoclip.protect(optax.adam(3e-3))}
    monkeypatch.setattr(demo_storm, "optimizers", lambda: rules)
    code, out, _ = run(capsys, "demo", "--steps", "120")
    assert code == 0
    figures = {
        line.split()[0]: [*map(float, line.split()[1:])] for line in out.splitlines() if line.startswith((*rules,))
    }
    (calm, storm, nan), (own_calm, own_storm, own_nan) = figures["adam"], figures["protect"]
    assert own_calm == pytest.approx(calm, rel=0.02)
    assert storm > 1.5 * calm
    assert np.isnan(nan)
    assert own_storm == pytest.approx(calm, rel=0.2)
    assert own_nan == pytest.approx(calm, rel=0.2)
    assert "takes --steps and --seed; examples/train_lm.py of a clone" in refused(capsys, "demo", "--clip", "zclip")
    assert "--steps must be at least 80" in refused(capsys, "demo", "--steps", "3")
    assert "--steps must be at most 1000000; got 1" in refused(capsys, "demo", "--steps", "1" + 20 * "0")
    for seed in ("99999999999999999999999", "4294967296", "-1"):
        assert f"--seed must be from 0 to 4294967295; got {seed}" in refused(capsys, "demo", "--seed", seed)
    assert demo_command._options(["--seed", "4294967295"]) == (400, 2**32 - 1)
    jax.random.key(2**32 - 1)


def test_the_demo_compares_what_can_be_pasted():
    scope = {"novoclip": novoclip, "optax": optax}
    for line, make in demo_storm.optimizers().items():
        params = jnp.ones(2)
        assert jax.tree.structure(eval(line, scope).init(params)) == jax.tree.structure(make().init(params))


def test_a_folder_that_does_not_exist_is_told_before_the_work(capsys, monkeypatch, log, tmp_path):
    monkeypatch.setattr(replay_command, "replay", lambda *_, **__: 1 / 0)
    for option in ("--report", "--png"):
        assert "does not exist" in refused(capsys, "replay", log, option, tmp_path / "no" / "file")


def test_a_log_without_numbers_is_answered_with_what_a_log_is(capsys, log):
    log.write_text("hello\nworld\n")
    assert "a CSV file whose first line is 'step,grad_norm'" in refused(capsys, "replay", log)


def test_a_run_that_a_log_of_one_does_not_have(capsys, log):
    assert "it holds one run, which has no name; omit run= (--run)" in refused(capsys, "replay", log, "--run", "2")


def test_epochs_of_one_run_are_joined_by_an_option(capsys, log):
    head, *rows = log.read_text().splitlines()
    log.write_text("\n".join([head, *rows, *rows]) + "\n")
    assert "(--run all) joins them" in refused(capsys, "replay", log)
    code, out, _ = run(capsys, "replay", log, "--run", "all")
    assert code == 0
    assert out.startswith("log: 240 rows, steps 0 to 239, 4 spikes.\n- the steps begin again in each of 2 parts")


def test_help_has_examples_that_are_understood(capsys):
    for argv in (["--help"], ["rules", "--help"], ["replay", "--help"], ["watch", "--help"], ["demo", "--help"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(argv)
        out = capsys.readouterr().out
        examples = [line.split("  ")[0] for line in map(str.strip, out.splitlines()) if line.startswith("novoclip ")]
        assert examples
        for example in examples:
            parse(example.split()[1:])
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"novoclip {novoclip.__version__}\n"


def test_the_module_runs_as_a_program():
    argv = [sys.executable, "-m", "novoclip.commands", "replay", "x", "--norn"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr == "novoclip: no option '--norn'; did you mean --norm?\n"


def test_whole_lines_are_read_from_text_only(tmp_path):
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": [{"step": 5, "grad_norm": 1.5}]}, indent=2))
    assert watch_command.read_whole_lines(path).norms.tolist() == [1.5]
    path = tmp_path / "run.npz"
    np.savez(path, grad_norm=np.arange(1.0, 30.0))
    assert watch_command.read_whole_lines(path).norms.size == 29
