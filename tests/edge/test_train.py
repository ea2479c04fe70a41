"""Training: what a run writes, what resuming repeats, what ranks share, what callbacks may not change."""

import csv
import inspect
import math
import os
import re
import sys
from pathlib import Path

import lightning
import pytest
import torch
import waiting
from PIL import Image
from same import assert_same

from ddpm.data.digits import Digits
from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.datamodule import DataModule
from ddpm.lit.experiment import experiment
from ddpm.lit.module import DDPM
from ddpm.lit.quartiles import QuartileLoss
from ddpm.setup import build
from ddpm.setup.schema import plain

ROOT = Path(__file__).parents[2]


def read(folder, name="last.ckpt"):
    return torch.load(folder / name, weights_only=True)


def metrics(folder):
    """Column of metrics.csv -> its values in order."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return {key: [float(row[key]) for row in rows if row[key]] for key in rows[0]}


def weights(content, prefix):
    return {key: value for key, value in content["state_dict"].items() if key.startswith(prefix)}


def assert_same_training(a, b):
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "ddpm_config"):
        assert_same(a[part], b[part], part)


# ---------------------------------------------------------------- as typed


def typed(folder, *arguments):
    done = waiting.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_leaves_its_checkpoint_metrics_samples_and_configuration(tmp_path, tiny):
    stdout = typed(tmp_path, *tiny, "parameterization=v", "loss=min_snr")
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found >= {
        "last.ckpt",
        "metrics.csv",
        "train.log",
        "samples/step_0000006.png",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
    }
    assert "loss=min_snr" in (folder / ".hydra" / "overrides.yaml").read_text()
    assert not any("=" in path.name for path in tmp_path.rglob("*"))
    assert f"{ROOT}/evaluate.py ckpt={folder.relative_to(tmp_path)}/last.ckpt 'metrics=[fid,is,nll]'\n" in stdout


@pytest.mark.slow
def test_a_sweep_trains_every_combination_in_a_folder_of_its_own(tmp_path, bare):
    typed(tmp_path, "-m", *bare, "trainer.max_steps=2", "parameterization=eps,x0", "loss=simple")
    checkpoints = list((tmp_path / "runs" / "multirun").glob("*/*/last.ckpt"))
    assert len(checkpoints) == 2
    stored = {read(path.parent)["ddpm_config"]["parameterization"]["_target_"].rsplit(".")[-1] for path in checkpoints}
    assert stored == {"Eps", "X0"}
    assert all(re.fullmatch(r"[\w.,+-]+", folder.name) for folder in (tmp_path / "runs" / "multirun").glob("*/*"))


# ---------------------------------------------------------------- what a run writes


@pytest.fixture(scope="module")
def full(train, tiny, tmp_path_factory):
    """The folder of a tiny run with every callback."""
    folder = tmp_path_factory.mktemp("full run")
    every = [f"callbacks.{name}.every_n_steps=2" for name in ("samples", "bits_per_dim", "quality", "checkpoint")]
    train(folder, *every, "time_sampler=importance", base=tiny)
    return folder


@pytest.mark.slow
def test_a_run_writes_grids_and_one_checkpoint(full):
    assert sorted(path.name for path in (full / "samples").iterdir()) == [f"step_000000{k}.png" for k in (2, 4, 6)]
    assert [path.name for path in full.rglob("*.ckpt")] == ["last.ckpt"]
    assert not any("=" in path.name for path in full.rglob("*"))
    grid = Image.open(full / "samples" / "step_0000006.png")
    assert min(grid.size) > 2 * 8


@pytest.mark.slow
def test_every_metric_is_logged_as_often_as_asked(full):
    logged = metrics(full)
    for name in ("bits_per_dim", "prior", "rate", "distortion", "standard_error", "fid", "fid_error", "fid_floor"):
        assert len(logged[name]) == 3, name
    assert len(logged["val/loss"]) == 2
    assert len(logged["train/loss"]) == 3
    assert {f"train/loss_q{quarter}" for quarter in range(1, 5)} <= set(logged)
    assert all(math.isfinite(value) for values in logged.values() for value in values)
    assert len(set(logged["fid_floor"])) == 1
    for bits, rate, distortion in zip(logged["bits_per_dim"], logged["rate"], logged["distortion"], strict=True):
        assert bits == pytest.approx(rate + distortion, rel=1e-12)


@pytest.mark.slow
def test_a_checkpoint_holds_raw_and_averaged_weights_optimizer_and_history(full):
    content = read(full)
    raw, averaged = weights(content, "diffusion.network."), weights(content, "ema.network.")
    assert len(raw) == len(averaged) > 0
    assert {key.removeprefix("diffusion.") for key in raw} == {key.removeprefix("ema.") for key in averaged}
    moved = [key for key in raw if not torch.equal(raw[key], averaged[key.replace("diffusion.", "ema.")])]
    assert len(moved) > len(raw) / 2
    moments = content["optimizer_states"][0]["state"]
    assert len(moments) == len(raw)
    assert all(state["exp_avg"].abs().sum() > 0 for state in moments.values())
    assert content["state_dict"]["time_sampler.count"].sum() == 6 * 16
    assert content["state_dict"]["time_sampler.losses"].sum() > 0
    assert content["global_step"] == 6
    image = content["ddpm_config"]["image"]
    assert {key: image[key] for key in ("shape", "levels", "classes")} == {
        "shape": [1, 8, 8],
        "levels": 17,
        "classes": 0,
    }
    assert {split: kept["n"] for split, kept in image["digest"].items()} == {"train": 1437, "test": 360}


def test_the_averaged_weights_follow_every_step(train, tmp_path):
    train(tmp_path, "ema.decay=0", "ema.warm_up=false", "trainer.max_steps=2")
    content = read(tmp_path)
    for key, value in weights(content, "diffusion.network.").items():
        assert torch.equal(content["state_dict"][key.replace("diffusion.", "ema.")], value)


@pytest.mark.slow
def test_training_does_not_depend_on_what_is_observed(full, train, tmp_path):
    train(tmp_path, "callbacks.checkpoint.every_n_steps=2", "time_sampler=importance", "trainer.limit_val_batches=0")
    seen, unseen = read(full), read(tmp_path)
    for content in (seen, unseen):  # what the callbacks are told is stored too
        assert content["ddpm_config"].pop("evaluation")["features"] == "classifier"
    assert_same_training(seen, unseen)


@pytest.mark.slow
def test_a_checkpoint_is_the_same_for_the_same_seed_and_another_for_another(train, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tmp_path / name, f"seed={seed}", "trainer.max_steps=2")
    a, b, c = (read(tmp_path / name) for name in "abc")
    assert_same_training(a, b)
    different = [
        key for key in weights(a, "diffusion.network.") if not torch.equal(a["state_dict"][key], c["state_dict"][key])
    ]
    assert len(different) > 20


def test_kept_checkpoints_are_those_of_their_step(train, tmp_path):
    train(tmp_path, "callbacks.checkpoint.every_n_steps=2", "callbacks.checkpoint.keep_every_n_steps=4")
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"last.ckpt", "step_0000004.ckpt"}
    assert read(tmp_path, "step_0000004.ckpt")["global_step"] == 4


# ---------------------------------------------------------------- resuming

# Two batches a pass, so that six steps are three passes; dropout and an importance sampler that has learned.
REPEATED = (
    "batch_size=500",
    "schedule.T=6",
    "time_sampler=importance",
    "time_sampler.history=3",
    "network.dropout=0.3",
    "network.multipliers=[1]",
    "network.attention=[]",
)


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = train(folder, *REPEATED, "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep_every_n_steps=1")
    assert (run.module.time_sampler.count >= 3).all()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("how", ["stopped early", "cut off"])
def test_resuming_repeats_the_uninterrupted_run_bit_for_bit(uninterrupted, train, tmp_path, k, how):
    if how == "stopped early":
        train(tmp_path / "first", *REPEATED, f"trainer.max_steps={k}", "trainer.log_every_n_steps=1")
        checkpoint = tmp_path / "first" / "last.ckpt"
    else:
        checkpoint = uninterrupted / f"step_000000{k}.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == k
    train(tmp_path / "second", *REPEATED, f"ckpt='{checkpoint}'")
    assert_same_training(read(tmp_path / "second"), read(uninterrupted))


@pytest.mark.slow
def test_resuming_is_exact_with_accumulation_validation_and_workers(train, tmp_path):
    options = (
        "trainer.accumulate_grad_batches=2",
        "trainer.val_check_interval=2",
        "num_workers=1",
        "network.dropout=0.3",
    )
    train(tmp_path / "whole", *options)
    train(tmp_path / "first", *options, "trainer.max_steps=3")
    train(tmp_path / "second", *options, f"ckpt='{tmp_path}/first/last.ckpt'")
    assert_same_training(read(tmp_path / "second"), read(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("k", [9, 10, 11])
def test_a_resumed_run_logs_the_losses_of_the_uninterrupted_one(train, tmp_path, k):
    options = ("trainer.val_check_interval=5", "trainer.log_every_n_steps=7", "trainer.max_steps=21")
    train(tmp_path / "whole", *options)
    train(tmp_path / "first", *options, f"trainer.max_steps={k}")
    train(tmp_path / "second", *options, f"ckpt='{tmp_path}/first/last.ckpt'")
    whole, cut = (metrics(tmp_path / name) for name in ("whole", "second"))
    assert cut["train/loss"] == whole["train/loss"][k // 7 :]
    assert cut["val/loss"] == whole["val/loss"][k // 5 :]


def test_resuming_a_finished_run_asks_for_more_steps(uninterrupted, train, tmp_path):
    with pytest.raises(ValueError, match=r"trained for 6 steps already; give a trainer"):
        train(tmp_path, *REPEATED, f"ckpt='{uninterrupted}/last.ckpt'")


@pytest.mark.parametrize(
    ("override", "group"),
    [
        ("parameterization=v", "parameterization"),
        ("schedule=cosine", "schedule"),
        ("schedule.beta_T=0.03", "schedule"),
        ("variance=fixed_small", "variance"),
        ("network.width=16", "network"),
        ("loss=p2", "loss"),
        ("time_sampler.history=4", "time_sampler"),
        ("data.flip=true", "data"),
        ("seed=1", "seed"),
        ("batch_size=400", "total_batch"),
    ],
)
def test_resuming_with_another_model_is_refused(uninterrupted, train, tmp_path, override, group):
    with pytest.raises(
        ValueError, match=f"was trained with other settings of {group} .*repeat the options of that run"
    ):
        train(tmp_path, *REPEATED, override, f"ckpt='{uninterrupted}/last.ckpt'")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- losses


def test_noise_times_and_dropout_share_no_seed(compose, bare, tmp_path):
    module = experiment(compose("train", *bare, f"output_dir='{tmp_path}'")).module
    seeds = set()
    for step in (0, 1):
        own, shared = module._generators(step, 0)
        seeds |= {own.initial_seed(), shared.initial_seed(), torch.initial_seed()}
    assert len(seeds) == 6


@pytest.mark.parametrize(("loss", "factor"), [("simple", 1), ("vlb", 20)])
def test_the_logged_loss_is_the_weighted_mean_of_the_batch_and_the_whole_bound_of_vlb(
    compose, bare, train, tmp_path, loss, factor
):
    overrides = ("network.dropout=0", "trainer.log_every_n_steps=1", "trainer.max_steps=1", f"loss={loss}")
    train(tmp_path, *overrides)
    again = experiment(compose("train", *bare, *overrides, f"output_dir='{tmp_path}'"))
    module, batch = again.module.train(), next(iter(again.data.train_dataloader()))
    x_0 = again.data.on_after_batch_transfer(batch, 0).x_0
    own, shared = module._generators(0, 0)
    t, weight = module.time_sampler(len(x_0), shared)
    noise = torch.randn(x_0.shape, generator=own)
    losses = module.losses(module.diffusion, x_0, t, noise).detach()
    assert losses.shape == (16,)
    assert metrics(tmp_path)["train/loss"] == [pytest.approx(factor * float((weight * losses).mean()), rel=1e-6)]


def test_the_loss_and_its_quartiles_are_weighted_means_over_time():
    quartiles = QuartileLoss(8)
    quartiles.update(
        torch.tensor([1, 2, 3, 8]), torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([3.0, 1.0, 1.0, 2.0]), 0
    )
    quartiles.update(torch.tensor([4, 7]), torch.tensor([7.0, 1.0]), torch.tensor([1.0, 1.0]), 1)
    means = {name: float(mean) for name, mean in quartiles.compute().items()}
    expected = {"loss": 33 / 9, "loss_q1": 6 / 4, "loss_q2": 12 / 2, "loss_q4": 15 / 3}
    assert means == pytest.approx(expected)  # nothing fell into the third


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "time_sampler").glob("*.yaml")))
def test_every_time_from_the_first_to_the_last_is_drawn(compose, name):
    sampler = build.instance("time_sampler", compose("train", f"time_sampler={name}").time_sampler, T=5)
    t, weight = sampler(500, torch.Generator().manual_seed(0))
    assert t.unique().tolist() == [1, 2, 3, 4, 5]
    assert weight.shape == (500,)


def validated(module, batch_size):
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data = DataModule(Digits(), 16, eval_batch_size=batch_size)
    return trainer.validate(module, datamodule=data, verbose=False)[0]["val/loss"]


@pytest.mark.slow
def test_validation_is_deterministic_and_independent_of_the_batch_size(train, tmp_path):
    module = train(tmp_path, "network.dropout=0.5").module
    torch.manual_seed(1)
    first = validated(module, 64)
    torch.manual_seed(2)
    assert validated(module, 64) == first
    for batch_size in (7, 360):
        assert validated(module, batch_size) == pytest.approx(first, rel=1e-6)


# ---------------------------------------------------------------- ranks


@pytest.fixture
def module_at(compose, bare, tmp_path, monkeypatch):
    """rank -> the module on that rank."""
    module = experiment(compose("train", *bare, f"output_dir='{tmp_path}'")).module
    at = {"rank": 0}
    monkeypatch.setattr(DDPM, "global_rank", property(lambda self: at["rank"]))

    def of(rank):
        at["rank"] = rank
        return module

    return of


def test_ranks_and_steps_share_no_noise_and_no_dropout_but_the_shared_numbers(module_at):
    own, dropout, shared = [], [], []
    for rank in range(3):
        for step, part in ((0, 0), (0, 1), (1, 0)):
            mine, everyone = module_at(rank)._generators(step, part)
            own.append(torch.randn(4, generator=mine))
            dropout.append(torch.rand(4))  # of the global generator, from which dropout draws
            shared.append(torch.rand(4, generator=everyone))
    for numbers in (own, dropout):
        assert len({tuple(row.tolist()) for row in numbers}) == 9
    assert len({tuple(row.tolist()) for row in shared}) == 3
    for rank in range(3):
        assert_same(shared[3 * rank : 3 * rank + 3], shared[:3])


def test_the_noise_of_a_step_is_a_function_of_seed_rank_and_step_alone(module_at):
    def numbers():
        own, shared = module_at(1)._generators(7, 0)
        return [torch.randn(4, generator=own), torch.rand(4, generator=shared), torch.rand(4)]

    first = numbers()
    torch.manual_seed(0)
    module_at(0)._generators(3, 1)
    assert_same(numbers(), first)
    module_at(1).seed = 1
    assert not any(torch.equal(a, b) for a, b in zip(numbers(), first, strict=True))


# ---------------------------------------------------------------- callbacks


class Recorder(Periodic):
    """Notes the steps at which it acts."""

    def __init__(self, every_n_steps):
        super().__init__(every_n_steps)
        self.steps = []

    def run(self, trainer, module):
        self.steps.append(trainer.global_step)


def recorded(compose, bare, folder, every_n_steps, *overrides):
    built = experiment(compose("train", *bare, f"output_dir='{folder}'", *overrides))
    recorder = Recorder(every_n_steps)
    built.trainer.callbacks.append(recorder)
    built.run()
    return recorder.steps


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("every_n_steps", "steps"),
    [(1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4, 6]), (6, [6]), (100, [6]), (None, [6])],
)
def test_a_callback_acts_every_so_many_steps_and_once_at_the_last(
    compose, bare, tmp_path, every_n_steps, steps, accumulate
):
    option = f"trainer.accumulate_grad_batches={accumulate}"
    assert recorded(compose, bare, tmp_path, every_n_steps, option) == steps


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_does_not_act_again_at_the_step_it_starts_from(compose, bare, train, tmp_path, accumulate):
    options = (f"trainer.accumulate_grad_batches={accumulate}", f"ckpt='{tmp_path}/first/last.ckpt'")
    train(tmp_path / "first", options[0], "trainer.max_steps=3")
    assert recorded(compose, bare, tmp_path / "a", 3, *options) == [6]


def test_what_a_checkpoint_stores_is_plain_and_rebuilds_every_part(compose, bare, tmp_path):
    cfg = compose("train", *bare, f"output_dir='{tmp_path}'")
    stored = experiment(cfg).module.config
    assert set(stored) == {
        "schedule", "parameterization", "variance", "network", "conditioning", "loss", "time_sampler", "sampler",
        "data", "seed", "evaluation", "image", "total_batch",
    }  # fmt: skip
    given = plain(cfg)
    assert all(stored[key] == given[key] for key in stored if key in given)
    assert str(tmp_path) not in repr(stored)
    assert inspect.getmodule(type(build.source(stored))).__name__ == "ddpm.data.digits"
