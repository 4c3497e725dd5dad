"""Records that tools wrote themselves, names of OLMo, and logs whose steps begin again at each epoch."""

from contextlib import closing
import shutil
import sqlite3

import numpy as np
import pytest

from novoclip.records import read_record
from tests.test_records import LOSSES, NORMS, RATES, RECORDS, RISING, ROWS, STEPS, error_of, write

TOLD = np.where(ROWS == 3, np.nan, np.where(ROWS == 5, np.inf, NORMS))


def database(path, name):
    """Build the database that a tool wrote, of which the dump is kept."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((RECORDS / "tools" / name).read_text())
    return path


def assert_told(record, losses=LOSSES, rates=RATES, steps=STEPS):
    np.testing.assert_array_equal(record.norms, TOLD)
    np.testing.assert_array_equal(record.losses, losses)
    np.testing.assert_allclose(record.learning_rates, rates, rtol=1e-6)
    np.testing.assert_array_equal(record.steps, steps)


@pytest.mark.parametrize("name", ["wandb_history.csv", "trainer_state.json", "mlflow"])
def test_what_tools_wrote_themselves_is_read(name):
    assert_told(read_record(RECORDS / "tools" / name))


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_databases_of_trackio_and_mlflow_are_read(tmp_path, name):
    assert_told(read_record(database(tmp_path / "fixture.db", f"{name}.sql")))


def test_one_metric_that_trackio_prints_is_read():
    nothing = np.full(20, np.nan)
    assert_told(read_record(RECORDS / "tools" / "trackio_metric.json"), nothing, nothing)


def test_lines_that_transformers_prints_are_read():
    assert_told(read_record(RECORDS / "tools" / "hf_printed.txt"), steps=ROWS)


def test_runs_of_one_database_and_of_one_folder_are_kept_apart(tmp_path):
    for name in ("trackio", "mlflow"):
        path = database(tmp_path / f"{name}.db", f"{name}.sql")
        with closing(sqlite3.connect(path)) as connection:
            if name == "trackio":
                more = "SELECT id + 20, 'b', timestamp, 'run-2', step, metrics, NULL, NULL FROM metrics"
            else:
                connection.execute("INSERT INTO runs VALUES ('b', 'run-2')")
                more = "SELECT key, value, timestamp, 'b', step, is_nan FROM metrics"
            connection.execute(f"INSERT INTO metrics {more}")
            connection.commit()
        assert "1: 'run-1' (20 rows), 2: 'run-2' (20 rows)" in error_of(path)
        assert_told(read_record(path, run="run-2"))
    for run in ("a", "b"):
        shutil.copytree(RECORDS / "tools" / "mlflow", tmp_path / "mlruns" / "0" / run)
    (tmp_path / "mlruns" / "0" / "b" / "tags" / "mlflow.runName").write_text("run-2")
    assert "1: 'run-1' (20 rows), 2: 'run-2' (20 rows)" in error_of(tmp_path / "mlruns")
    assert_told(read_record(tmp_path / "mlruns", run=2))


def test_formats_that_are_not_read_say_what_to_write_instead(tmp_path):
    path = tmp_path / "log"
    for content, advice in (
        (b":W&B&B\xe1\xbe\x00", "wandb sync"),
        (b"PAR1\x15", "to_csv"),
        (b"\x89HDF\r\n", "NPZ"),
        (b"SQLite format 3\0 and no more", "SQLite cannot read it"),
    ):
        path.write_bytes(content)
        message = error_of(path)
        assert message.startswith(f"{path}: ")
        assert advice in message
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE other (a)")
    assert "without a table of metrics" in error_of(path)


def test_norms_of_tensors_are_found_as_olmo_names_them():
    tensors = ("transformer.wte.weight", "transformer.blocks.0.ff_out.weight")
    others = ("param", "exp_avg", "exp_avg_sq")
    columns = {f"optim/{kind}/{name}.norm": 9 + NORMS for kind in others for name in tensors}
    columns |= {f"optim/grad/{name}.{kind}": 7 + NORMS for kind in ("min", "max", "avg") for name in tensors}
    columns |= {f"optim/grad/{name}.norm": NORMS * factor for name, factor in zip(tensors, (3, 4), strict=True)}
    record = read_record({"optim/total_grad_norm": 5 * NORMS, "train/CrossEntropyLoss": LOSSES} | columns)
    np.testing.assert_array_equal(record.norms, 5 * NORMS)
    assert list(record.tensors) == list(tensors)
    np.testing.assert_array_equal(record.tensors[tensors[1]], 4 * NORMS)
    np.testing.assert_allclose(read_record(columns).norms, 5 * NORMS)


def test_lines_of_olmo_core_have_blanks_in_names(tmp_path):
    lines = []
    for step, norm, loss, rate in zip(STEPS, NORMS, LOSSES, RATES, strict=True):
        lines += [
            f"2026-01-01 12:00:00.000\thost:0\tolmo_core.train:48\tINFO\t[step={step}/1000,epoch=1,eta=0:03:20]",
            f"    train/CE loss={loss:.4f}",
            f"    optim/total grad norm={norm:.4f}",
            f"    optim/LR (group 0)={rate}",
            "    throughput/total tokens=4,194,304",
        ]
    record = read_record(write(tmp_path / "log.txt", "\n".join(lines)))
    np.testing.assert_allclose(record.norms, NORMS, atol=1e-4)
    np.testing.assert_allclose(record.losses, LOSSES)
    np.testing.assert_allclose(record.learning_rates, RATES)
    np.testing.assert_array_equal(record.steps, STEPS)


@pytest.mark.parametrize("rows", [40, 5])
def test_steps_that_begin_again_at_each_epoch_are_one_run(rows):
    norms = np.concatenate([RISING[:rows] + epoch for epoch in range(4)])
    columns = {"grad_norm": norms, "step": np.tile(10 * np.arange(rows), 4), "epoch": np.repeat(np.arange(4), rows)}
    record = read_record(columns)
    np.testing.assert_array_equal(record.norms, norms)
    np.testing.assert_array_equal(record.steps, 10 * np.arange(4 * rows))
    assert "the steps begin again in each of 4 epochs: these were joined, and the steps count on" in record.notes


def test_a_run_that_is_resumed_falls_back_in_epoch_too():
    steps, norms = np.r_[np.arange(30), np.arange(20, 40)], np.linspace(1, 2, 50)
    record = read_record({"grad_norm": norms, "step": steps, "epoch": steps // 10})
    np.testing.assert_array_equal(record.norms, np.r_[norms[:20], norms[30:]])
    np.testing.assert_array_equal(record.steps, np.arange(40))
    # Another run in the same file begins with the first epoch.
    columns = {"grad_norm": np.tile(RISING, 4), "step": np.tile(np.arange(40), 4), "epoch": np.repeat([0, 1, 0, 1], 40)}
    assert "1: 'part 1' (80 rows), 2: 'part 2' (80 rows)" in error_of(columns)


def test_without_an_epoch_the_parts_can_be_joined():
    columns = {"grad_norm": np.r_[RISING, 2 * RISING], "step": np.r_[np.arange(40), np.arange(40)]}
    assert "if they are epochs of one run, run='all' (--run all) joins them" in error_of(columns)
    record = read_record(columns, run="all")
    np.testing.assert_array_equal(record.norms, columns["grad_norm"])
    np.testing.assert_array_equal(record.steps, np.arange(80))
    assert record.name == "norms"
    assert "the steps begin again in each of 2 parts: these were joined, and the steps count on" in record.notes
    part = " ".join(read_record(columns, run=2).notes)
    assert "this is one of 2 parts" in part
    assert "--run all" in part
    assert len(read_record({"grad_norm": RISING}, run="all").norms) == 40
    assert "has no run 'all'" in error_of(RECORDS / "wandb.csv", run="all")


def test_a_loss_comes_from_the_row_of_its_own_epoch(tmp_path):
    lines = ["epoch,step,loss,grad_norm"]
    for epoch in range(2):
        for step in range(20):
            lines += [f"{epoch},{step},{10 * epoch + step},", f"{epoch},{step},,{1 + step / 100}"]
    record = read_record(write(tmp_path / "log.csv", "\n".join(lines)))
    np.testing.assert_array_equal(record.losses, np.r_[np.arange(20), 10 + np.arange(20)])


@pytest.mark.parametrize(("rows", "passes"), [(5, 10), (5, 2), (2, 9), (40, 3)])
def test_all_joins_parts_of_any_length(rows, passes):
    norms = 1 + np.arange(rows * passes) / 100
    record = read_record({"grad_norm": norms, "step": np.tile(np.arange(rows), passes)}, run="all")
    np.testing.assert_array_equal(record.norms, norms)
    np.testing.assert_array_equal(record.steps, np.arange(rows * passes))
    assert f"the steps begin again in each of {passes} parts: these were joined, and the steps count on" in record.notes


def test_norms_and_losses_in_blocks_of_lines_are_put_together(tmp_path):
    lines = ["step,loss,grad_norm", *(f"{s},,{1 + s / 100}" for s in range(50)), *(f"{s},{s}," for s in range(50))]
    np.testing.assert_array_equal(read_record(write(tmp_path / "log.csv", "\n".join(lines))).losses, np.arange(50))
