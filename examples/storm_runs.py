"""The four runs of train_lm.py, trained side by side on the cores there are, and what is kept of them."""

from concurrent.futures import ThreadPoolExecutor, wait
import os
import threading

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from storm_picture import draw
from storm_report import by_label, result_table, statistics_line, write_history
from storm_rules import GLOBAL_NORM, NO_RULE
from storm_training import Run, Task, make_faults, make_optimizer, train


def plan(options, rule, descent):
    """Return the runs, each with its optimizer, in the order of the table, seed by seed."""
    clean, stormed = (make_faults(options.steps, options.nan, stormed=stormed) for stormed in (False, True))
    # Runs with the same rule share its compiled step.
    alone, global_norm, ruled = (make_optimizer(used, descent.transform) for used in (NO_RULE, GLOBAL_NORM, rule))
    return [
        (Run(label, faults, used, seed), optimizer)
        for seed in range(options.seed, options.seed + options.seeds)
        for label, faults, used, optimizer in (
            (f"clean: {descent.title} alone", clean, NO_RULE, alone),
            (f"storm: {descent.title} alone", stormed, NO_RULE, alone),
            (f"storm: {GLOBAL_NORM.call(descent.title)}", stormed, GLOBAL_NORM, global_norm),
            (f"storm: {rule.call(descent.title)}", stormed, rule, ruled),
        )
    ]


def train_all(planned, task, log_every, console):
    """Train as many runs at a time as there are cores; one run alone keeps no more than one core busy."""
    groups = by_label([run for run, _ in planned])
    width = max(map(len, groups))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    stopped = threading.Event()
    with (
        Progress(*columns, console=console, transient=True) as progress,
        ThreadPoolExecutor(min(len(planned), os.cpu_count() or 1)) as pool,
    ):
        # A bar without a total moves to and fro: the first steps wait for their programs to be compiled.
        bars = {label: progress.add_task(label, total=None, loss="compiling") for label in groups}

        def report(run, steps):
            done = sum(len(of.steps) for of in groups[run.label])
            total = sum(len(of.faults.scale) for of in groups[run.label])
            if run.validation is None:
                loss = f"loss {np.mean([run.steps[step - 1]['loss'] for step in steps]):.3f}"
            else:
                loss = f"validation loss {run.validation:.3f}"
            progress.update(bars[run.label], completed=done, total=total, loss=loss)
            for step in steps:
                if step % log_every == 0:
                    console.print(
                        statistics_line(run, step, width, several=len(groups[run.label]) > 1),
                        highlight=False,
                        soft_wrap=True,
                    )

        # The storm first, so that an interrupted demo has seen what matters most.
        ordered = sorted(planned, key=lambda pair: (pair[0].seed, pair[0].label.startswith("clean")))
        futures = [pool.submit(task.compile)]
        futures += [pool.submit(train, run, task, optimizer, report, stopped) for run, optimizer in ordered]
        try:
            while wait(futures, timeout=0.2).not_done:  # without a timeout, some systems hold back Ctrl-C
                pass
            for future in futures:
                future.result()
        finally:
            stopped.set()


def train_and_show(options, rule, descent):
    """Train the runs, print their table, and write their picture and history; return the exit status."""
    console = Console()
    task = Task(options.characters)
    size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, options.seed)))
    model = f"A transformer of {size:,} parameters, which learns to predict the next character"
    text = f"{task.characters:,} characters, {task.vocabulary} of them different"
    console.print(f"{model}.\nText: {options.source}; {text}.", highlight=False, soft_wrap=True)
    console.print("Compiling the training steps first, which takes about 20 seconds.")
    planned = plan(options, rule, descent)
    status = 0
    try:
        train_all(planned, task, options.log_every, console)
    except KeyboardInterrupt:
        console.print("Interrupted; this is what was measured so far.")
        status = 130
    runs = [run for run, _ in planned]
    if any(run.steps for run in runs):
        seeds = f"mean of {options.seeds} seeds" if options.seeds > 1 else "1 seed"
        setting = f"{descent}, {options.steps:,} steps, {'interrupted' if status else seeds}"
        console.print(result_table(runs, setting))
        picture, history = (options.out / f"{options.stem}.{ending}" for ending in ("png", "csv"))
        write_history(runs, history)
        setting += "; dots: each seed, bands: their range" if options.seeds > 1 else ""
        draw(runs, "A gradient storm: one language model, four trainings", f"{model}.\n{setting}.", picture)
        console.print(f"Picture: {picture}\nHistory: {history}", highlight=False, soft_wrap=True)
    return status
