"""Resuming with other options: each is applied, or refused by name; and checkpoints of earlier versions."""

import json
import lzma
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from ddpm.commands.evaluate import evaluate
from ddpm.lit.experiment import experiment
from ddpm.lit.resume import resumable
from ddpm.setup import loading
from ddpm.setup.schema import plain

REFUSED = {
    "schedule._target_": "ddpm.schedule.quadratic.Quadratic",
    "schedule.T": 21,
    "schedule.beta_1": 2e-4,
    "schedule.beta_T": 0.03,
    "parameterization._target_": "ddpm.parameterization.v.V",
    "variance._target_": "ddpm.variance.fixed_small.FixedSmall",
    "loss._target_": "ddpm.loss.p2.P2",
    "time_sampler._target_": "ddpm.time_sampler.stratified.Stratified",
    "network._target_": None,
    "network.width": 16,
    "network.multipliers": [2, 2],
    "network.blocks": 2,
    "network.attention": [8],
    "network.dropout": 0.2,
    "network.groups": 2,
    "network.recompute": True,
    "conditioning._target_": "ddpm.conditioning.class_.ClassLabels",
    "data._target_": None,
    "data.flip": True,
    "optimizer._target_": "torch.optim.AdamW",
    "trainer.accumulate_grad_batches": 2,
    "batch_size": 8,
    "seed": 1,
}
"""What a run may not change on its way, and another value of it; None where there is no other."""


def callback(run, name):
    return next(each for each in run.trainer.callbacks if type(each).__name__ == name)


def optimizer(run):
    return run.module.configure_optimizers()["optimizer"].param_groups[0]


APPLIED = {
    "optimizer.lr": (1e-4, lambda run: optimizer(run)["initial_lr"]),
    "optimizer.betas": ([0.5, 0.9], lambda run: list(optimizer(run)["betas"])),
    "optimizer.eps": (1e-7, lambda run: optimizer(run)["eps"]),
    "optimizer.weight_decay": (0.1, lambda run: optimizer(run)["weight_decay"]),
    "optimizer.fused": (False, lambda run: optimizer(run)["fused"]),
    "trainer.max_steps": (9, lambda run: run.trainer.max_steps),
    "trainer.max_time": ("00:00:01:00", lambda run: callback(run, "Timer") and "00:00:01:00"),
    "trainer.precision": ("bf16-mixed", lambda run: run.trainer.precision),
    "trainer.gradient_clip_val": (2.0, lambda run: run.trainer.gradient_clip_val),
    "trainer.log_every_n_steps": (3, lambda run: run.trainer.log_every_n_steps),
    "trainer.val_check_interval": (5, lambda run: run.trainer.val_check_interval),
    "trainer.limit_val_batches": (1, lambda run: run.trainer.limit_val_batches),
    "trainer.num_sanity_val_steps": (1, lambda run: run.trainer.num_sanity_val_steps),
    "trainer.deterministic": (True, lambda run: torch.are_deterministic_algorithms_enabled()),
    "trainer.benchmark": (True, lambda run: torch.backends.cudnn.benchmark),
    "sampler.steps": (7, lambda run: run.module.config["sampler"]["steps"]),
    "sampler.clip": (False, lambda run: run.module.config["sampler"]["clip"]),
    "sampler.spacing": ("quadratic", lambda run: run.module.config["sampler"]["spacing"]),
    "callbacks.samples.every_n_steps": (7, lambda run: callback(run, "Samples").every_n_steps),
    "callbacks.samples.n": (5, lambda run: callback(run, "Samples").n),
    "callbacks.samples.sampler.steps": (6, lambda run: callback(run, "Samples").sampler.steps),
    "callbacks.samples.sampler.clip": (False, lambda run: callback(run, "Samples").sampler.clip),
    "callbacks.samples.sampler.spacing": ("quadratic", lambda run: callback(run, "Samples").sampler.spacing),
    "callbacks.samples.seed": (3, lambda run: callback(run, "Samples").seed),
    "callbacks.checkpoint.every_n_steps": (2, lambda run: callback(run, "Checkpoint").every_n_steps),
    "callbacks.checkpoint.keep_every_n_steps": (4, lambda run: callback(run, "Checkpoint").keep_every_n_steps),
    "callbacks.bits_per_dim.every_n_steps": (7, lambda run: callback(run, "BitsPerDim").every_n_steps),
    "callbacks.bits_per_dim.n_images": (9, lambda run: callback(run, "BitsPerDim").n_images),
    "callbacks.bits_per_dim.evaluations": (5, lambda run: callback(run, "BitsPerDim").evaluations),
    "callbacks.bits_per_dim.batch_size": (64, lambda run: callback(run, "BitsPerDim").batch_size),
    "callbacks.bits_per_dim.clip": (True, lambda run: callback(run, "BitsPerDim").clip),
    "callbacks.bits_per_dim.seed": (3, lambda run: callback(run, "BitsPerDim").seed),
    "callbacks.quality.every_n_steps": (7, lambda run: callback(run, "Quality").every_n_steps),
    "callbacks.quality.n_samples": (50, lambda run: callback(run, "Quality").n_samples),
    "callbacks.quality.batch_size": (64, lambda run: callback(run, "Quality").batch_size),
    "callbacks.quality.features": ("inception", lambda run: callback(run, "Quality").features),
    "callbacks.quality.inception_weights": ("x.pt", lambda run: callback(run, "Quality").inception_weights),
    "callbacks.quality.metrics.fid._target_": (
        "ddpm.metrics.kid.KID",
        lambda run: f"ddpm.metrics.kid.{type(callback(run, 'Quality').metrics['fid']).__name__}",
    ),
    "callbacks.quality.sampler.steps": (6, lambda run: callback(run, "Quality").sampler.steps),
    "callbacks.quality.sampler.clip": (False, lambda run: callback(run, "Quality").sampler.clip),
    "callbacks.quality.sampler.spacing": ("quadratic", lambda run: callback(run, "Quality").sampler.spacing),
    "callbacks.quality.seed": (3, lambda run: callback(run, "Quality").seed),
    "callbacks.progress.refresh_rate": (3, lambda run: callback(run, "Progress").refresh_rate),
    "ema.decay": (0.5, lambda run: run.module.ema.decay),
    "ema.warm_up": (False, lambda run: run.module.ema.warm_up),
    "warmup_steps": (30, lambda run: run.module.warmup_steps),
    "num_workers": (1, lambda run: run.data.num_workers),
    "compile": (True, lambda run: run.module.diffusion.network._compiled_call_impl is not None),
}
"""What it may: another value, and where the run that is built has it."""

AS_TYPED = {
    *("optimizer._partial_", "trainer._target_", "strategy._target_", "strategy.static_graph"),
    *("sampler._target_", "callbacks.samples._target_", "callbacks.samples.sampler._target_"),
    *(
        "callbacks.checkpoint._target_",
        "callbacks.bits_per_dim._target_",
        "callbacks.quality._target_",
    ),
    *("callbacks.quality.sampler._target_", "callbacks.progress._target_", "callbacks.throughput._target_"),
    *("logger.csv._target_", "logger.csv.save_dir", "output_dir", "ckpt", "speed", "other_data", "trainer.accelerator"),
    *("trainer.devices", "trainer.num_nodes", "metrics.fid._target_", "objective"),
}
"""What a checkpoint holds nothing of: a run is built from what is typed, whether it resumes or not. Other devices must
share the same total batch, which is compared."""


def leaves(node, path=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


@pytest.fixture(scope="module")
def cfg(compose, bare, trained, tmp_path_factory):
    """Of a run that resumes a checkpoint of two steps, with every callback."""
    folder = tmp_path_factory.mktemp("resumed")
    options = ("callbacks=default", f"output_dir='{folder}'", f"ckpt='{trained}'")
    return compose("train", *bare, *options)


def test_every_option_is_applied_or_refused_at_a_resume(cfg):
    """A new option fails this test until somebody has decided which."""
    assert set(leaves(plain(cfg))) == {*REFUSED, *APPLIED, *AS_TYPED}
    assert len(REFUSED) + len(APPLIED) + len(AS_TYPED) == len({*REFUSED, *APPLIED, *AS_TYPED})


def with_options(cfg, options):
    cfg = OmegaConf.create(plain(cfg))
    for key, value in options.items():
        OmegaConf.update(cfg, key, value)
    return cfg


@pytest.mark.slow
def test_what_may_not_change_is_refused_by_its_name(cfg):
    for key, value in REFUSED.items():
        if value is None:
            continue
        name = {"batch_size": "total_batch", "trainer.accumulate_grad_batches": "total_batch"}.get(key)
        with pytest.raises(ValueError, match=name or key.split(".")[0]) as shown:
            experiment(with_options(cfg, {key: value}))
        assert "repeat the options of that run" in str(shown.value), key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You passed `deterministic=True` and `benchmark=True`")
def test_what_may_change_is_what_the_run_is_built_with(cfg):
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    try:
        built = experiment(with_options(cfg, {key: value for key, (value, _) in APPLIED.items()}))
        for key, (value, found) in APPLIED.items():
            assert found(built) == value, key
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def test_the_same_total_batch_may_be_made_up_otherwise(cfg):
    experiment(with_options(cfg, {"batch_size": 8, "trainer.accumulate_grad_batches": 2}))


def weights(folder):
    content = torch.load(folder / "last.ckpt", weights_only=True)
    return torch.cat([w.flatten() for k, w in content["state_dict"].items() if k.startswith("diffusion.")]), content


@pytest.mark.slow
def test_a_learning_rate_that_is_changed_acts_and_so_does_every_option_of_the_optimizer(train, trained, tmp_path):
    before, _ = weights(trained.parent)

    def step(name, *options):
        train(tmp_path / name, "trainer.max_steps=3", "warmup_steps=0", f"ckpt='{trained}'", *options)
        after, content = weights(tmp_path / name)
        return float((after - before).abs().max()), content

    usual, _ = step("usual", "optimizer.lr=1e-3")
    small, content = step("small", "optimizer.lr=1e-6", "optimizer.weight_decay=0.1", "optimizer.betas=[0.8,0.9]")
    assert small < 1e-2 * usual
    (group,) = content["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["initial_lr"], group["weight_decay"], group["betas"]) == (1e-6, 1e-6, 0.1, (0.8, 0.9))
    (schedule,) = content["lr_schedulers"]
    assert (schedule["base_lrs"], schedule["last_epoch"]) == ([1e-6], 3)


def test_a_longer_warm_up_is_that_of_the_step_that_is_resumed(cfg):
    built = experiment(with_options(cfg, {"optimizer.lr": 1e-2, "warmup_steps": 10}))
    content = built.trainer.strategy.checkpoint_io.content
    built.module.on_load_checkpoint(content)
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-2 * 3 / 10  # the third step


def test_the_time_that_a_run_may_take_is_counted_from_its_first_start(cfg, trained):
    built = experiment(with_options(cfg, {"trainer.max_time": "00:01:00:00"}))
    content = loading.read(trained) | {"callbacks": {"Timer": {"time_elapsed": {"train": 1000.5}}, "Other": {"a": 1}}}
    states = resumable(content, built.module, built.trainer)["callbacks"]
    assert states.keys() == {"Timer"}
    assert states["Timer"]["time_elapsed"]["train"] == 1000.5
    for wrong in ({"time_elapsed": {"train": "long"}}, {"time_elapsed": 3}, []):
        with pytest.raises(ValueError, match=r"callbacks.Timer"):
            resumable(content | {"callbacks": {"Timer": wrong}}, built.module, built.trainer)


@pytest.mark.parametrize("path", ["OUT/../../precious", "memory://precious", "simplecache::file://precious"])
def test_a_callback_is_told_of_no_file_outside_of_the_folder_of_the_run(cfg, trained, tmp_path, path):
    """ModelCheckpoint removes the files that its state names."""
    built = experiment(cfg)
    built.trainer.callbacks.append(keeper := ModelCheckpoint(tmp_path, monitor="val/loss"))
    state = {"best_model_path": "a", "best_model_score": None, "best_k_models": {path: torch.tensor(1.0)}}
    content = loading.read(trained) | {"callbacks": {keeper.state_key: state}}
    with pytest.raises(ValueError, match="leads out of the run's folder"):
        resumable(content, built.module, built.trainer)


def test_what_is_resumed_is_what_was_checked_whatever_takes_its_place(cfg, trained, tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(trained.read_bytes())
    files = experiment(with_options(cfg, {"ckpt": str(mine)})).trainer.strategy.checkpoint_io
    mine.write_bytes(b"another")
    assert files.load_checkpoint(mine)["global_step"] == 2
    with pytest.raises(ValueError, match="is not the checkpoint to resume"):
        files.load_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")


# ---------------------------------------------------------------- earlier versions

EARLIER = Path(__file__).with_name("version_0_1.ckpt.xz")
ITS_OPTIONS = (
    *("network.width=4", "network.groups=2", "network.blocks=1", "network.multipliers=[1]", "network.attention=[]"),
    *("network.dropout=0", "schedule.T=6", "time_sampler=importance", "time_sampler.history=2"),
)


@pytest.mark.slow
def test_a_checkpoint_of_version_0_1_is_opened_resumed_and_evaluated(train, compose, tmp_path):
    earlier = tmp_path / "earlier.ckpt"
    earlier.write_bytes(lzma.decompress(EARLIER.read_bytes()))
    train(tmp_path / "on", *ITS_OPTIONS, "trainer.max_steps=4", f"ckpt='{earlier}'")
    content = torch.load(tmp_path / "on" / "last.ckpt", weights_only=True)
    assert (content["global_step"], content["state_dict"]["time_sampler.count"].sum()) == (4, 4 * 16)
    out = f"output_dir={json.dumps(str(tmp_path / 'out'))}"
    result = evaluate(compose("evaluate", f"ckpt='{earlier}'", "metrics=[nll]", "nll.n_images=4", out))
    assert 3 < result["nll"]["bits_per_dim"] < 12
