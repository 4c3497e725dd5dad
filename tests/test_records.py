"""Reading recorded norms: each format, each rule of tidying up, each error message."""

import json
from pathlib import Path
import shutil
import sys

import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from novoclip.records import Record, RecordError, read_record
from novoclip.records.columns import find_learning_rate, find_loss, find_norms, find_step, find_tensors
from novoclip.records.console import read_console

RECORDS = Path(__file__).parent / "records"
ROWS = np.arange(20)
NORMS = 0.5 + ROWS / 8
LOSSES = 8 - ROWS / 4
RATES = 1e-5 * (ROWS + 1)
STEPS = 10 * (ROWS + 1)
LOGGED = "logged every 10 steps: windows of rules count rows, and spikes between rows are not seen"
RISING = np.geomspace(1, 5, 40)


def error_of(source, **options):
    with pytest.raises(RecordError) as caught:
        read_record(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path, text):
    path.write_text(text)
    return path


def notes_of(norms, **columns):
    return " | ".join(read_record({"grad_norm": norms, **columns}).notes)


@pytest.mark.parametrize(
    ("name", "steps", "rates"),
    [
        ("clu.txt", STEPS, RATES),
        ("megatron.txt", STEPS, RATES),
        ("torchtitan.txt", STEPS, None),
        ("olmo.txt", STEPS, None),
        ("maxtext_metrics.txt", ROWS, RATES),
        ("trainer_state.json", STEPS, RATES),
        ("tf_summary", STEPS, None),
        ("tf_summary/train/events.out.tfevents.1000000000.host", STEPS, None),
    ],
)
def test_each_format_is_read(name, steps, rates):
    record = read_record(RECORDS / name)
    assert isinstance(record, Record)
    np.testing.assert_array_equal(record.steps, steps)
    assert record.steps.dtype == np.int64
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.losses, LOSSES)
    np.testing.assert_allclose(record.learning_rates, np.full(20, np.nan) if rates is None else rates, rtol=1e-6)
    assert record.stride == steps[1] - steps[0]
    assert (LOGGED in record.notes) == (record.stride == 10)
    assert record.tensors == {}


def test_event_files_of_tensorboardx_are_read_with_columns_of_fewer_steps():
    record = read_record(RECORDS / "tensorboardx")
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.losses, LOSSES)
    np.testing.assert_allclose(record.learning_rates, np.where(ROWS % 2, RATES, np.nan), rtol=1e-6)
    assert record.name == "tensorboardx"


@pytest.mark.parametrize("name", ["hf_console.txt", "hf_console_strings.txt"])
def test_console_lines_of_hugging_face_have_no_steps(name):
    record = read_record(RECORDS / name)
    np.testing.assert_array_equal(record.steps, ROWS)
    np.testing.assert_array_equal(record.norms, np.where(ROWS == 3, np.nan, NORMS))
    np.testing.assert_array_equal(record.losses, LOSSES)
    np.testing.assert_allclose(record.learning_rates, RATES)
    assert record.stride == 1
    assert "the log has no steps: its rows are counted from 0" in " ".join(record.notes)
    assert "1 of 20 norms is not finite (1 NaN, 0 inf)" in record.notes


@pytest.mark.parametrize(
    ("name", "stride", "first", "median", "largest", "not_finite"),
    [  # of the 30 rows, by the csv and statistics modules
        ("d1_wmt_nadamw", 100, 4.788896560668945, 0.5024796277284622, 4.788896560668945, 0),
        ("d2_librispeech_deepspeech_nadamw", 100, 16.314170837402344, 2.1818864345550537, 16.314170837402344, 0),
        ("d3_imagenet_vit_nadamw", 100, 0.35481423139572144, 0.9434785544872284, 1.5896072387695312, 0),
        ("d4_hf_star", 20, 4.8393846636618925, 4.6689398142869925, 6.5089097418638415, 0),
        ("d5_hf_translation_lora", 1, 3.603320360183716, 1.9895530939102173, 71.91153717041016, 0),
        ("d6_criteo_shampoo_nan", 1, 5.21, 52.821, 2.3647170808774656e16, 16),
    ],
)
def test_logs_of_real_trainings_are_read(name, stride, first, median, largest, not_finite):
    record = read_record(RECORDS / f"{name}.csv")
    finite = record.norms[np.isfinite(record.norms)]
    assert (record.name, len(record.norms), record.stride, record.norms[0]) == (name, 30, stride, first)
    assert (len(record.norms) - len(finite), finite.max()) == (not_finite, largest)
    np.testing.assert_allclose(np.median(finite), median)
    assert np.all(np.isnan(record.learning_rates)) == (name != "d5_hf_translation_lora")
    assert np.all(np.isfinite(record.losses[np.isfinite(record.norms)]))


def test_an_export_of_wandb_holds_runs():
    message = error_of(RECORDS / "wandb.csv")
    assert "1: 'brisk-fox-1' (20 rows), 2: 'calm-owl-2' (18 rows)" in message
    assert "run=" in message
    assert "--run" in message
    record = read_record(RECORDS / "wandb.csv", run="calm-owl-2")
    np.testing.assert_array_equal(record.norms, 4 * NORMS[:18])  # neither the column of minima nor that of maxima
    np.testing.assert_array_equal(record.steps, STEPS[:18])
    assert record.name == "wandb/calm-owl-2"
    for run in (1, "1"):
        np.testing.assert_array_equal(read_record(RECORDS / "wandb.csv", run=run).norms, NORMS)
    by_full_name = read_record(RECORDS / "wandb.csv", norm="calm-owl-2 - train/grad_norm")
    np.testing.assert_array_equal(by_full_name.norms, 4 * NORMS[:18])
    assert "has no run 'other'; it holds 1: 'brisk-fox-1'" in error_of(RECORDS / "wandb.csv", run="other")
    assert "has no run 3" in error_of(RECORDS / "wandb.csv", run=3)


def test_folders_of_event_files_are_runs(tmp_path):
    for name in ("a", "b/c"):
        shutil.copytree(RECORDS / "tf_summary" / "train", tmp_path / name)
    assert "1: 'a' (20 rows), 2: 'b/c' (20 rows)" in error_of(tmp_path)
    np.testing.assert_array_equal(read_record(tmp_path, run="b/c").norms, NORMS)


def test_of_several_runs_the_only_one_with_norms_is_taken():
    assert "of 2 runs, only 'train' has norms" in read_record(RECORDS / "tf_summary").notes


@pytest.mark.parametrize("begin", [15, 0])
def test_a_folder_with_the_event_files_of_two_starts_holds_all_rows(tmp_path, begin):
    for start, steps in enumerate((range(20), range(begin, 40))):
        writer = EventFileWriter(str(tmp_path), filename_suffix=f".{start}")
        # Of which TensorBoard itself would drop the rows from this step on: of a whole run too.
        log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        writer.add_event(event_pb2.Event(wall_time=1e9 + 1000 * start, step=steps[0], session_log=log))
        for step in steps:
            value = summary_pb2.Summary.Value(tag="grad_norm", simple_value=1 + step + start)
            summary = summary_pb2.Summary(value=[value])
            writer.add_event(event_pb2.Event(wall_time=1e9 + 1000 * start + step, step=step, summary=summary))
        writer.close()
    if begin:
        record = read_record(tmp_path)
        np.testing.assert_array_equal(record.norms, [*range(1, 16), *range(17, 42)])
        assert "5 rows were replaced" in " ".join(record.notes)
    else:
        assert "1: 'part 1' (20 rows), 2: 'part 2' (40 rows)" in error_of(tmp_path)


def test_event_files_without_tensorboard_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    assert "pip install 'novoclip[replay]'" in error_of(RECORDS / "tensorboardx")


def test_npz_npy_arrays_and_lists_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", **{"train/grad_norm": NORMS, "step": STEPS, "shape": np.ones((2, 2)), "who": "me"})
    record = read_record(tmp_path / "a.npz")
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.steps, STEPS)
    np.save(tmp_path / "b.npy", NORMS.astype(np.float32))
    np.savez(tmp_path / "c", NORMS)
    for source in (tmp_path / "b.npy", str(tmp_path / "c.npz"), NORMS, NORMS.tolist()):
        record = read_record(source)
        np.testing.assert_array_equal(record.norms, NORMS)
        np.testing.assert_array_equal(record.steps, ROWS)
        assert np.all(np.isnan(record.losses))


def test_nested_json_lines_are_read_whatever_the_ending(tmp_path):
    lines = [
        json.dumps({"train": {"grad_norm": n, "loss": 2 * n}, "_step": int(s)})
        for n, s in zip(NORMS, STEPS, strict=True)
    ]
    record = read_record(write(tmp_path / "log", "\n".join([*lines, '{"train": {"grad_n'])))
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.losses, 2 * NORMS)
    np.testing.assert_array_equal(record.steps, STEPS)
    assert record.notes[0] == "1 of 21 lines are no JSON objects and were not read."


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimited_text_is_read(tmp_path, delimiter, encoding):
    lines = [delimiter.join(("Step", "grad-norm", "Loss", "note"))]
    lines += [delimiter.join((str(s), f"{n:.1e}", "", "ok")) for n, s in zip(RISING, range(40), strict=True)]
    (tmp_path / "log").write_bytes("\r\n".join(lines).encode(encoding))
    record = read_record(tmp_path / "log")
    np.testing.assert_allclose(record.norms, RISING, rtol=0.05)
    np.testing.assert_array_equal(record.steps, np.arange(40))
    assert np.all(np.isnan(record.losses))


def test_one_column_of_numbers_is_norms(tmp_path):
    np.savetxt(tmp_path / "norms.txt", NORMS)
    np.testing.assert_array_equal(read_record(tmp_path / "norms.txt").norms, NORMS)


@pytest.mark.parametrize(
    ("word", "expected"), [("nan", np.nan), ("NaN", np.nan), ("inf", np.inf), ("Infinity", np.inf), ("1.2e+01", 12.0)]
)
def test_words_for_numbers_are_numbers_in_every_format(tmp_path, word, expected):
    norms = [*map(str, NORMS), word]
    rows = [f"{step},{norm}" for step, norm in enumerate(norms)]
    sources = [
        write(tmp_path / "a.csv", "\n".join(["step,grad_norm", *rows])),
        write(tmp_path / "b.jsonl", "\n".join(json.dumps({"step": s, "grad_norm": n}) for s, n in enumerate(norms))),
        write(tmp_path / "c.log", "\n".join(f"step: {s}  grad_norm: {n}" for s, n in enumerate(norms))),
    ]
    for source in sources:
        np.testing.assert_array_equal(read_record(source).norms, [*NORMS, expected])


def test_cells_that_are_no_numbers_are_empty(tmp_path):
    rows = [{"grad_norm": norm} for norm in (*NORMS, True, None, "n/a", "", [1.0])]
    record = read_record(write(tmp_path / "log.jsonl", "\n".join(map(json.dumps, rows))))
    np.testing.assert_array_equal(record.norms, NORMS)
    assert "5 rows without a norm were skipped" in record.notes


def test_metrics_of_an_evaluation_are_kept_apart_in_lines_of_clu():
    (table,) = read_console("logging_writer.py:48] [7] collection=eval loss=2.5, grad_norm=nan")
    assert list(table.columns) == ["step", "eval/loss", "eval/grad_norm"]
    assert (find_loss(table.columns), find_norms(list(table.columns))) == (None, [])


def test_lines_of_other_text_are_ignored():
    (table,) = read_console(
        "Loading train.py:48] done\nstep: 3  tps: 12,345  grad_norm: .5\n\nmemory 12GiB at step 9\n"
    )
    assert table.columns == {"step": [3.0], "tps": [12345.0], "grad_norm": [0.5]}


def test_an_indented_text_erases_no_number(tmp_path):
    lines = []
    for step, norm in zip(STEPS, NORMS, strict=True):
        lines += [f"step={step} loss=2.5 grad_norm={norm}", "    loss=skipped", "    grad_norm=n/a", "    lr=nan"]
    record = read_record(write(tmp_path / "a.log", "\n".join(lines)))
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.losses, np.full(20, 2.5))
    np.testing.assert_array_equal(record.steps, STEPS)


def test_an_indented_number_that_the_row_has_begins_another():
    (table,) = read_console("  grad_norm=1\n" * 100)
    assert table.columns == {"grad_norm": [1.0] * 100}
    (table,) = read_console("[step=1/9]\n  a=inf\n  b=2\n  a=3\n  b=4\n  step=2,a=5,b=6\n")
    assert table.columns == {"step": [1.0, None, 2.0], "a": [np.inf, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


@pytest.mark.parametrize("values", [NORMS.tolist(), [{"step": 0, "value": 1.0}, 2.0]])
def test_a_file_with_a_column_called_values_is_no_metric_of_trackio(tmp_path, values):
    columns = {"metric": "grad_norm", "values": values, "grad_norm": NORMS.tolist(), "loss": LOSSES.tolist()}
    source = write(tmp_path / "a.json", json.dumps(columns))
    if values == NORMS.tolist():
        np.testing.assert_array_equal(read_record(source).losses, LOSSES)
    else:
        assert f"{source}: the file: 'values' must be a 1-D array of numbers" in error_of(source)


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["learning/grad_norm", "learning/raw_grad_norm", "learning/param_norm"], "learning/raw_grad_norm"),
        (["grad_norm", "grad_norm_unclipped"], "grad_norm_unclipped"),
        (["grad_norm_after_clip", "Grad-Norm Before Clip"], "Grad-Norm Before Clip"),
        (["clipped_grad_norm", "gnorm"], "gnorm"),
        (["update_norm", "param_norm", "gradient_norm"], "gradient_norm"),
        (["loss", "optim/total grad norm"], "optim/total grad norm"),
        (["global_norm", "train/grad_norm"], "train/grad_norm"),
        (["clip/norm", "clip/limit", "clip/norm/a/w", "clip/norm/a/b"], "clip/norm"),
        (["spikes/norm", "spikes/limit"], "spikes/norm"),
        (["grad_2.0_norm_total", "grad_2.0_norm/a", "grad_2.0_norm/b"], "grad_2.0_norm_total"),
        (["encoder/grad_norm", "loss"], "encoder/grad_norm"),
    ],
)
def test_the_norm_before_clipping_is_found_by_name(names, best):
    assert find_norms(names)[0] == best
    assert find_norms(names[::-1])[0] == best


@pytest.mark.parametrize(
    "names",
    [
        ["grad_norm_after_clip"],
        ["clipped/grad_norm", "param_norm", "update/grad_norm", "max_grad_norm"],
        ["encoder/grad_norm", "decoder/grad_norm"],
        ["grad_norm/a", "grad_norm/b"],
        ["loss", "normal", "eval/grad_norm"],
    ],
)
def test_a_norm_that_may_be_another_is_not_taken(names):
    assert find_norms(names) == []


def test_columns_are_found_by_name():
    assert find_loss(["eval/loss", "validation_loss", "val/loss", "lm loss"]) == "lm loss"
    assert find_loss(["train_loss", "Loss"]) == "Loss"
    assert find_loss(["eval/loss", "mtp_loss"]) is None
    assert find_step(["time_per_step", "_step"]) == "_step"
    assert find_step(["completed step", "loss"]) == "completed step"
    assert find_step(["tokens_per_step", "epoch"]) is None
    assert find_learning_rate(["loss", "learning/current_learning_rate"]) == "learning/current_learning_rate"
    assert find_learning_rate(["lr-AdamW/pg1", "lr-AdamW"]) == "lr-AdamW"
    assert find_learning_rate(["flr", "loss"]) is None


@pytest.mark.parametrize("prefix", ["clip/norm/", "grad_norm/", "gradients/norm/", "grad_norm.", "train/grad_norm/"])
def test_norms_of_single_tensors_are_found(prefix):
    names = ["loss", "grad_norm", f"{prefix}decoder/layers_0/kernel", f"{prefix}layer1.weight", f"{prefix}total"]
    expected = {name.removeprefix(prefix): name for name in names[2:4]}
    assert find_tensors(names) == expected
    assert find_tensors(names[:3]) == {}


def test_norms_of_single_tensors_are_read():
    record = read_record({"clip/norm": NORMS, "clip/norm/a/w": NORMS / 2, "clip/norm/a/b": NORMS / 3, "step": STEPS})
    np.testing.assert_array_equal(record.norms, NORMS)
    assert list(record.tensors) == ["a/w", "a/b"]
    np.testing.assert_array_equal(record.tensors["a/b"], NORMS / 3)


def test_columns_can_be_named():
    columns = {"size": NORMS, "t": STEPS, "cost": LOSSES, "eta": RATES, "grad_norm": NORMS + 1, "step": ROWS}
    record = read_record(columns, norm="Size", step="t", loss="cost", learning_rate="eta")
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.steps, STEPS)
    np.testing.assert_array_equal(record.losses, LOSSES)
    np.testing.assert_array_equal(record.learning_rates, RATES)


def test_columns_that_would_fit_too_are_noted():
    record = read_record({"gnorm": NORMS, "train/grad_norm": NORMS + 1})
    np.testing.assert_array_equal(record.norms, NORMS + 1)
    assert "the norms were read from 'train/grad_norm'; 'gnorm' would fit too (norm=, --norm)" in record.notes


def test_a_column_that_is_not_found_is_answered_with_the_nearest():
    message = error_of({"size_of_gradients": NORMS, "loss": LOSSES, "normal": NORMS})
    assert "no column of gradient norms" in message
    assert "'normal'" in message
    assert 'norm="..."' in message
    assert "--norm NAME" in message
    assert "'gradients_size'; the nearest are 'size_of_gradients'" in error_of(
        {"size_of_gradients": NORMS, "loss": LOSSES}, norm="gradients_size"
    )
    assert "step='stepp' is no column with numbers; the nearest are 'step'" in error_of(
        {"grad_norm": NORMS, "step": STEPS}, step="stepp"
    )
    assert "--learning-rate NAME" in error_of({"grad_norm": NORMS}, learning_rate="speed")
    assert "nearest are 'completed step'" in error_of(RECORDS / "maxtext.txt")  # which prints no norms


def test_rows_without_a_norm_are_left_out_but_their_losses_are_used(tmp_path):
    lines = [
        "step,loss,grad_norm",
        *(f"{s},{loss},\n{s},,{n}" for s, loss, n in zip(STEPS, LOSSES, NORMS, strict=True)),
    ]
    record = read_record(write(tmp_path / "log.csv", "\n".join(lines)))
    np.testing.assert_array_equal(record.norms, NORMS)
    np.testing.assert_array_equal(record.losses, LOSSES)
    assert "20 rows without a norm were skipped" in record.notes


def test_norms_that_are_not_finite_are_kept_and_counted():
    norms = np.r_[RISING, np.nan, np.inf, np.nan]
    np.testing.assert_array_equal(read_record(norms).norms, norms)
    assert "3 of 43 norms are not finite (2 NaN, 1 inf)" in notes_of(norms)
    assert "not finite" not in notes_of(RISING)


def test_the_stride_is_the_median_distance_of_steps():
    record = read_record({"grad_norm": RISING, "step": np.r_[np.arange(39) * 100, 9999]})
    assert record.stride == 100
    assert "logged every 100 steps" in record.notes[0]
    assert "logged every" not in notes_of(RISING, step=np.arange(40))


def test_of_a_resumed_run_the_last_row_of_each_step_is_kept():
    steps = np.r_[np.arange(30), np.arange(20, 40)]
    norms = np.r_[np.full(30, 1.0) + np.arange(30) / 100, 2 + np.arange(20) / 100]
    record = read_record({"grad_norm": norms, "step": steps})
    np.testing.assert_array_equal(record.steps, np.arange(40))
    np.testing.assert_array_equal(record.norms, np.r_[norms[:20], norms[30:]])
    assert "10 rows were replaced by a later row of the same step, as when a run is resumed" in record.notes


def test_steps_out_of_order_are_sorted():
    steps = np.r_[np.arange(0, 40, 2), np.arange(21, 61, 2)]
    record = read_record({"grad_norm": RISING, "step": steps})
    np.testing.assert_array_equal(record.steps, np.sort(steps))
    np.testing.assert_array_equal(record.norms, RISING[np.argsort(steps)])
    assert "the steps were not in order: the rows were sorted by step" in record.notes


def test_steps_that_begin_again_are_several_runs():
    columns = {"grad_norm": np.r_[RISING, 2 * RISING], "step": np.r_[np.arange(40), np.arange(40)]}
    message = error_of(columns)
    assert "1: 'part 1' (40 rows), 2: 'part 2' (40 rows)" in message
    assert "run=" in message
    np.testing.assert_array_equal(read_record(columns, run=2).norms, 2 * RISING)
    np.testing.assert_array_equal(read_record(columns, run="part 1").norms, RISING)
    # A start that was soon lost is no run, nor is the second process that logs each step too.
    early = {"grad_norm": np.r_[RISING[:5], RISING], "step": np.r_[np.arange(5), np.arange(40)]}
    assert "5 rows were replaced" in " ".join(read_record(early).notes)
    twice = {"grad_norm": np.repeat(RISING, 2), "step": np.repeat(np.arange(40), 2)}
    np.testing.assert_array_equal(read_record(twice).norms, RISING)


def test_zeros_are_kept_and_noted():
    assert "12 norms are exactly 0: " in notes_of(np.r_[RISING, np.zeros(12)])
    assert "1 norm is exactly 0: " in notes_of(np.r_[RISING, 0])
    assert "40 norms are exactly 0: " in notes_of(np.zeros(40))


def test_few_norms_are_noted():
    assert "only 15 finite norms: too short to judge" in notes_of(np.r_[RISING[:15], np.nan])
    assert "too short" not in notes_of(RISING[:16])


@pytest.mark.parametrize("limit", [1.0, 0.3])
def test_norms_recorded_after_a_clip_are_refused(limit):
    norms = np.minimum(RISING / 3, limit)
    share = np.mean(norms == limit)
    message = error_of(norms)
    assert f"the norms are flat at {limit} in {100 * share:.0f} % of the rows" in message
    assert "log the norm before clipping (novoclip.record() first in the chain" in message
    assert "flat at 2.0 in 100 %" in error_of(np.full(40, 2.0))
    # Rounding of a clip leaves small differences; seven rows, or less than 5 %, are no proof.
    assert "flat at" in error_of(np.r_[RISING / 5, 1 + 5e-5 * np.linspace(-1, 0, 7)])
    assert len(read_record(np.r_[RISING / 5.01, np.ones(7)]).norms) == 47
    assert len(read_record(np.r_[np.linspace(0.1, 0.9, 161), np.ones(8)]).norms) == 169
    assert "flat at 1.0 in 5 %" in error_of(np.r_[np.linspace(0.1, 0.9, 150), np.ones(8), np.inf])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"grad_norm": np.r_[RISING, -1.5]}, "1 of the norms are negative, the first is -1.5"),
        ({"grad_norm": np.full(3, np.nan)}, "no norm is finite (there are 3 rows)"),
        ({"grad_norm": []}, "the column 'grad_norm' is empty"),
        ({}, "no numbers with names were found"),
        (
            {"grad_norm": np.ones((2, 2))},
            "'grad_norm' must be a 1-D array of numbers, one for each row; got an array of",
        ),
        ({"grad_norm": ["a"]}, "must be a 1-D array of numbers, one for each row; got list"),
        ({"grad_norm": [10**400]}, "must be a 1-D array of numbers, one for each row; got list"),
        ({"grad_norm": [1.0, 2.0], "step": [1]}, "equally many rows; 'grad_norm' has 2, 'step' has 1"),
        ({"grad_norm": [1.0, 2.0], "step": [0.5, 1]}, "'step' must hold the steps, whole numbers; it holds 0.5"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(columns, message):
    assert message in error_of(columns)


def test_sources_that_cannot_be_read_are_refused_with_their_path(tmp_path):
    empty = write(tmp_path / "empty.csv", "\n")
    assert error_of(empty) == f"{empty}: the file is empty"
    assert error_of(tmp_path / "no.csv") == f"{tmp_path / 'no.csv'}: No such file or directory"
    assert f"{tmp_path}: the folder holds no event files of TensorBoard" in error_of(tmp_path)
    words = write(tmp_path / "words.txt", "hello\nworld\n")
    assert f"{words}: no numbers with names were found in it" in error_of(words)
    damaged = tmp_path / "a.npz"
    damaged.write_bytes(b"PK\x03\x04 and no more")
    assert f"{damaged}: NumPy cannot read it" in error_of(damaged)
    damaged = write(tmp_path / "events.out.tfevents.1.host", "no events")
    assert str(damaged) in error_of(damaged)
    shutil.copy(RECORDS / "trainer_state.json", tmp_path)
    damaged.unlink()
    np.testing.assert_array_equal(read_record(tmp_path).norms, NORMS)


def test_the_norm_of_a_guard_is_preferred_to_that_of_a_rule_inside():
    """The state of a rule inside a guard is that of the step before where a step was skipped."""
    norms = np.where(np.arange(40) == 20, np.nan, 1.0 + np.arange(40) / 100)
    record = read_record({"clip/norm": np.ones(40), "spikes/norm": norms})
    np.testing.assert_array_equal(record.norms, norms)


def test_a_mean_of_norms_is_no_norm_and_the_whole_is_computed_from_tensors():
    tensors = {"clip/norm/a": 3.0 + np.arange(40) / 100, "clip/norm/b": 4.0 + np.arange(40) / 50}
    record = read_record({"clip/norm_mean": np.full(40, 0.5), "clip/norm_max": np.full(40, 9.0)} | tensors)
    np.testing.assert_allclose(record.norms, np.hypot(*tensors.values()))
    assert any("computed from the norms of 2 tensors" in note for note in record.notes)
    with pytest.raises(RecordError, match="no column of gradient norms"):
        read_record({"clip/norm_mean": np.full(40, 0.5)})
