"""What the report reads from the folders of runs, and how it compares them."""

import itertools
import json
import os
import pickle

import numpy as np
import pytest
import yaml
from made import run
from omegaconf import OmegaConf

from ddpm.commands import cli
from ddpm.lit.experiment import train as trained_and_logged
from ddpm.reporting import runs as reading
from ddpm.reporting.cells import Mark, cells, entries, incomparable
from ddpm.reporting.evaluations import by_time
from ddpm.reporting.options import flat
from ddpm.reporting.quantities import quantity
from ddpm.reporting.runs import Result, found, read
from ddpm.setup.run_folder import comparable
from ddpm.setup.schema import plain

FID, LOSS, BITS = Result("fid", ""), Result("train/loss", ""), Result("bits_per_dim", "")
V, VLB = "ddpm.parameterization.v.V", "ddpm.loss.vlb.VLB"


def grouped(folder):
    return cells(found([folder])[0])


def marks(folder, result=FID):
    groups = grouped(folder)
    return {group.label: entry and entry.mark for group, entry in zip(groups, entries(groups, result), strict=True)}


# ---------------------------------------------------------------- reading


def test_a_real_run_is_read_as_it_reports_itself(train, tmp_path, tiny):
    train(tmp_path / "run", base=tiny)
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    this = read(tmp_path / "run")
    assert this.state == "finished"
    assert this.step == this.max_steps == 6
    assert {result.name: value for result, value in this.results.items()} == written["metrics"]
    assert this.curves["train/loss"].key.tolist() == [2, 4, 6]
    assert this.curves["val/loss"].key.tolist() == [3, 6]
    assert this.grid.name == "step_0000006.png"


def test_the_configuration_is_the_same_from_either_file(compose):
    cfg = compose(
        "train", "output_dir=here", "loss=min_snr", "loss.gamma=.inf", "schedule.beta_T=1e-2", "~callbacks.progress"
    )
    written = flat(yaml.safe_load(OmegaConf.to_yaml(cfg)))
    assert written["callbacks.samples.sampler.steps"] == written["sampler.steps"]
    of_results = flat(comparable(plain(cfg)))
    assert of_results == {name: value for name, value in written.items() if name in of_results}
    assert {name.split(".")[0] for name in {*written} - {*of_results}} <= {"output_dir", "ckpt", "other_data"}


def test_a_run_that_diverges_is_shown_as_diverged_with_its_reason(compose, bare, tmp_path):
    cfg = compose("train", *bare, "optimizer.lr=1e30", "warmup_steps=0", f"output_dir={json.dumps(str(tmp_path))}")
    with pytest.raises(ValueError, match="not"):
        trained_and_logged(cfg)
    (tmp_path / ".hydra").mkdir(exist_ok=True)  # Hydra may have been started in this process
    (tmp_path / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    this = read(tmp_path)
    assert this.state == "diverged"
    assert "finite" in this.note


TRACE = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\n{}\n'


@pytest.mark.parametrize(
    ("finished", "log", "state", "note"),
    [
        (True, "", "finished", ""),
        (False, "training: 40%\n", "unfinished", ""),
        (False, TRACE.format("OSError: [Errno 28] No space left"), "failed", "[Errno 28] No space left"),
        (False, TRACE.format("ValueError: the loss has not been finite since step 3"), "diverged", None),
        (False, TRACE.format("ValueError: x") + "folder: runs/x\n training: 50%\n", "unfinished", ""),
    ],
)
def test_how_a_run_ended_is_read_from_what_it_left(tmp_path, finished, log, state, note):
    this = read(run(tmp_path / "a", finished=finished, log=log, steps=range(10, 131, 10)))
    assert (this.state, this.step) == (state, 130)
    assert note is None or this.note == note


def test_a_finished_run_that_is_resumed_is_unfinished_again(tmp_path):
    folder = run(tmp_path / "a")
    with (folder / "metrics.csv").open("a") as file:
        file.write("310,7,0.05,,,,\n320,7.2,0.0")  # the last line is still being written
    this = read(folder)
    assert (this.state, this.step) == ("unfinished", 310)
    assert this.results[LOSS] == 0.05


def test_training_time_is_interpolated_between_the_steps_that_logged_it(tmp_path):
    this = read(run(tmp_path / "a"))
    assert this.seconds(np.array([100.0, 105.0])) == pytest.approx([2.0, 2.1])


def test_trees_sweeps_and_runs_may_be_given_in_any_number_and_no_run_counts_twice(tmp_path):
    for name in ("tree/sweep/2_b", "tree/sweep/10_c", "tree/a"):
        run(tmp_path / name)
    runs, unread = found([tmp_path / "tree/sweep", tmp_path / "tree", tmp_path / "tree/a"])
    assert [this.folder.name for this in runs] == ["2_b", "10_c", "a"]
    assert unread == {}


def test_a_damaged_run_is_named_and_the_others_are_read(tmp_path):
    run(tmp_path / "a")
    (run(tmp_path / "b") / "results.json").write_text("[1]")
    (run(tmp_path / "c") / ".hydra" / "config.yaml").write_text("a: [")
    nested = "x: &a [1]\n" + "".join(
        f"{k}: &{k} [{', '.join('*' + j for _ in range(9))}]\n" for j, k in itertools.pairwise("abcdefghi")
    )
    (run(tmp_path / "d") / ".hydra" / "config.yaml").write_text(nested)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "train.log").write_text(TRACE.format("ValueError: schedule.T must be at least 1"))
    runs, unread = found([tmp_path])
    assert [this.folder.name for this in runs] == ["a"]
    assert [os.path.basename(folder) for folder in unread] == ["b", "c", "d", "e"]
    assert "schedule.T must be at least 1" in [*unread.values()][-1]


@pytest.mark.parametrize(("given", "said"), [("nowhere", "is not a folder"), (".", "no runs in")])
def test_folders_without_runs_are_refused_in_a_line(tmp_path, monkeypatch, capsys, given, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["report.py", given])
    with pytest.raises(SystemExit) as end:
        cli.report()
    assert said in str(end.value)
    assert "\n" not in str(end.value)


def test_terms_are_averaged_at_each_time(tmp_path):
    np.savez(tmp_path / "terms.npz", terms=np.array([[1.0, 4.0], [3.0, 6.0]]), times=np.array([[1, 5], [1, 9]]))
    curve = by_time((tmp_path / "terms.npz").read_bytes())
    assert curve.x.tolist() == [1, 5, 9]
    assert curve.y.tolist() == [2, 4, 6]


# ---------------------------------------------------------------- folders of others


def test_nothing_outside_of_a_run_is_read_and_nothing_in_it_is_executed(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "EXECUTED"),)

    secret = run(tmp_path / "secret", metrics={"fid": 7.0}, evaluations=[{"nll": {"n": 3, "bits_per_dim": 7.0}}])
    folder = run(tmp_path / "given" / "a", metrics={"fid": 1.0})
    (folder / "last.ckpt").write_bytes(pickle.dumps(Runs()))
    (folder / "samples" / "step_0000300.png").unlink()
    (folder / "samples").rmdir()
    for name in ("evaluate_0", "samples"):
        (folder / name).symlink_to(secret / name)
    (folder / "results.json").unlink()
    (folder / "results.json").symlink_to(secret / "results.json")
    (folder / "evaluate_1").mkdir()
    np.save(folder / "evaluate_1" / "terms.npz.npy", np.array([Runs()], dtype=object), allow_pickle=True)
    os.replace(folder / "evaluate_1" / "terms.npz.npy", folder / "evaluate_1" / "terms.npz")
    (folder / "evaluate_1" / "metrics.json").write_text("{}")
    (tmp_path / "given" / "link").symlink_to(secret)
    runs, _ = found([tmp_path / "given"])
    (this,) = runs
    assert this.state == "unfinished"
    assert this.evaluations == ()
    assert this.grid is None
    assert 7.0 not in this.results.values()
    assert not (tmp_path / "EXECUTED").exists()


def test_a_pipe_in_place_of_a_file_does_not_hold_the_report_up(tmp_path):
    folder = run(tmp_path / "a")
    (folder / "metrics.csv").unlink()
    os.mkfifo(folder / "metrics.csv")
    assert read(folder).curves == {}


def test_a_file_that_is_too_large_is_refused(tmp_path, monkeypatch):
    folder = run(tmp_path / "a")
    monkeypatch.setattr(reading.content, "__defaults__", (1000,))
    with pytest.raises(ValueError, match=r"has [\d,]+ bytes, more than 1,000"):
        read(folder)


# ---------------------------------------------------------------- cells


def test_runs_that_differ_in_seed_folder_and_logger_alone_are_one_cell(tmp_path):
    run(tmp_path / "a", seed=0)
    run(tmp_path / "b", seed=1, options=[("logger.wandb", {"project": "x"}), ("ckpt", "a/last.ckpt")])
    (cell,) = grouped(tmp_path)
    assert [*cell.finished] == [0, 1]
    assert cell.options == {}


def test_only_options_that_tell_cells_apart_are_columns(tmp_path):
    snr = "ddpm.loss.min_snr.MinSNR"
    run(tmp_path / "a")
    run(tmp_path / "b", options=[("loss._target_", snr), ("loss.gamma", 5.0), ("sampler.steps", 20)])
    assert [cell.options for cell in grouped(tmp_path)] == [
        {"loss": "simple", "sampler.steps": "50"},  # not loss.gamma, which follows, nor copies of sampler.steps
        {"loss": "min_snr", "sampler.steps": "20"},
    ]
    run(tmp_path / "c", options=[("loss._target_", snr), ("loss.gamma", 1e-3), ("sampler.steps", 20)])
    assert [cell.label for cell in grouped(tmp_path)] == [
        "loss=simple, sampler.steps=50",
        "loss=min_snr, loss.gamma=5, sampler.steps=20",
        "loss=min_snr, loss.gamma=0.001, sampler.steps=20",
    ]


def test_of_runs_with_the_same_seed_the_last_finished_one_counts(tmp_path):
    for name, fid, finished, time in (("a", 1.0, True, 10), ("b", 2.0, True, 20), ("c", 3.0, False, 30)):
        folder = run(
            tmp_path / name, metrics={"fid": fid}, finished=finished, steps=range(10, 301 if finished else 101, 10)
        )
        for file in ("metrics.csv", "train.log"):
            os.utime(folder / file, (time, time))
    (cell,) = grouped(tmp_path)
    assert cell.values(FID) == {0: 2.0}


def test_cells_are_compared_with_the_best_as_far_as_the_seeds_can_tell(tmp_path):
    values = {"near": (3.0, 3.1, 3.2), "best": (2.9, 3.1, 3.1), "far": (6.0, 6.2, 6.1), "one": (2.0,)}
    for name, each in values.items():
        for seed, value in enumerate(each):
            metrics = {"fid": value, "is_mean": -value, "mine": value}
            run(tmp_path / f"{name}{seed}", seed=seed, options=[("schedule.name", name)], metrics=metrics)
    said = {name.removeprefix("schedule.name="): mark for name, mark in marks(tmp_path).items()}
    assert said == {"near": Mark.UNTESTED, "best": Mark.UNTESTED, "far": Mark.UNTESTED, "one": Mark.BEST}
    for path in (tmp_path / "one0").rglob("*"):
        if path.is_file():
            path.unlink()
    (tmp_path / "one0" / ".hydra").rmdir()
    said = {name.removeprefix("schedule.name="): mark for name, mark in marks(tmp_path).items()}
    assert said == {"near": Mark.TIED, "best": Mark.BEST, "far": Mark.WORSE}
    assert marks(tmp_path, Result("is_mean", "")) == marks(tmp_path)
    assert {*marks(tmp_path, Result("mine", "")).values()} == {Mark.NONE}


def test_numbers_that_mean_different_things_are_not_ranked(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", options=[("parameterization._target_", V)])
    assert {*marks(tmp_path, LOSS).values()} == {Mark.NONE}  # the errors of other targets
    assert Mark.BEST in marks(tmp_path, FID).values()
    groups = grouped(tmp_path)
    assert incomparable(groups, quantity("train/loss"), LOSS) == ["parameterization"]
    run(tmp_path / "c", options=[("callbacks.quality.n_samples", 1000)])
    assert {*marks(tmp_path, FID).values()} == {Mark.NONE}
    assert Mark.BEST in marks(tmp_path, BITS).values()


def test_the_bound_is_the_same_loss_for_every_parameterization(tmp_path):
    run(tmp_path / "a", options=[("loss._target_", VLB)])
    run(tmp_path / "b", options=[("loss._target_", VLB), ("parameterization._target_", V)])
    assert Mark.BEST in marks(tmp_path, LOSS).values()


def test_what_has_not_finished_is_not_compared(tmp_path):
    run(tmp_path / "a", metrics={"fid": 5.0})
    run(tmp_path / "b", options=[("schedule.T", 4000)], finished=False)
    run(tmp_path / "c", options=[("schedule.T", 10)], metrics={"fid": 6.0})
    groups = grouped(tmp_path)
    assert groups[1].values(FID) == {0: 3.0}  # the last of its log
    assert [entry.mark for entry in entries(groups, FID)] == [Mark.BEST, Mark.NONE, Mark.UNTESTED]


def test_evaluations_that_were_made_differently_are_different_numbers_and_of_the_same_the_later_counts(tmp_path):
    def samples(n, fid):
        sampler = {"_target_": "ddpm.sampler.ddim.DDIM"}
        return {"samples": {"n": n, "fid": fid, "features": "classifier", "sampler": sampler, "steps": 50}}

    this = read(run(tmp_path / "a", evaluations=[samples(100, 5.0), samples(1000, 4.0), samples(100, 6.0)]))
    made = {result.made: value for result, value in this.results.items() if result.made}
    assert made == {f"N = {n}, classifier, ddim, 50 steps": fid for n, fid in (("100", 6.0), ("1,000", 4.0))}
