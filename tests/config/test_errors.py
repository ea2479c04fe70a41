"""What a user gets wrong is one line that says what to do; nothing runs, nothing is left behind."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
import waiting
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from ddpm.setup import loading
from ddpm.setup.targets import check_targets

ROOT = Path(__file__).parents[2]


def shell(*arguments, cwd=ROOT, **environment):
    """Exit code and standard error of a command, as typed."""
    done = waiting.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "0"} | environment,
    )
    return done.returncode, done.stderr


# ---------------------------------------------------------------- as typed


@pytest.mark.slow
def test_an_impossible_combination_is_one_line_before_any_training(tmp_path):
    code, stderr = shell(
        "train.py", "loss=simple", "variance=learned_range", f"hydra.run.dir={json.dumps(str(tmp_path / 'run'))}"
    )
    assert code != 0
    assert "Traceback" not in stderr
    line = next(line for line in stderr.splitlines() if line.startswith("error: "))
    assert "loss=simple" in line
    assert "variance=learned_range" in line
    assert "choose loss=hybrid or loss=vlb, or variance=fixed_small or fixed_large" in line
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {".lock"}


@pytest.mark.slow
def test_a_misspelt_option_lists_the_options():
    code, stderr = shell("train.py", "schedule=cosin")
    assert code != 0
    assert "Traceback" not in stderr
    assert "cosin" in stderr
    for path in (ROOT / "conf" / "schedule").glob("*.yaml"):
        assert path.stem in stderr


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["evaluate.py", "sample.py"])
def test_without_a_checkpoint_the_command_says_to_give_one(entry):
    code, stderr = shell(entry)
    assert code != 0
    assert "Traceback" not in stderr
    assert "error: missing: ckpt; give ckpt=..." in stderr


@pytest.mark.slow
def test_a_misspelt_key_in_an_experiment_file_is_an_error(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nbatchsize: 3\n")
    code, stderr = shell("train.py", "--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job")
    assert code != 0
    assert "batchsize" in stderr
    assert "Traceback" not in stderr


# ---------------------------------------------------------------- misspelt


@pytest.mark.parametrize("name", ["train", "evaluate", "sample"])
def test_a_misspelt_key_at_the_root_is_an_error(compose, name):
    with pytest.raises(ConfigCompositionException, match="batchsize"):
        compose(name, "batchsize=3")


def test_a_misspelt_key_that_is_added_to_the_root_lists_the_keys(message):
    # Hydra's own message for batchsize=3 advises this.
    assert "there is no key batchsize; the keys are schedule, " in message("train", "+batchsize=3")
    assert "there is no key ema.dacay; the keys are ema.decay, ema.warm_up" in message("train", "+ema.dacay=0.9")
    assert "there is no key batchsize; the keys are ckpt, " in message("evaluate", "ckpt=x", "+batchsize=3")
    assert "there is no key batchsize; the keys are ckpt, " in message("sample", "ckpt=x", "+batchsize=3")


def test_a_misspelt_key_inside_a_group_is_an_error(compose):
    for override in ("schedule.bta_T=0.02", "network.widht=8", "ema.dacay=0.9", "callbacks.samples.every_n_step=1"):
        with pytest.raises(ConfigCompositionException, match=override.split("=")[0].rsplit(".", 1)[-1]):
            compose("train", override)


def test_a_keyword_that_the_class_does_not_take_lists_those_it_takes(message):
    line = message("train", "+schedule.bta_T=0.02")
    assert "bta_T" in line
    assert "takes T, beta_1, beta_T" in line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("schedule:\n  bta_T: 0.02", "bta_T"),
        (
            "callbacks:\n  fdi:\n    n_samples: 3",
            "callbacks.fdi has no _target_; the callbacks are best, bits_per_dim, ",
        ),
        ("callbacks:\n  quality:\n    n_sample: 3", "n_sample"),
        ("trainer:\n  max_step: 3", "max_step"),
        ("optimizer:\n  learning_rate: 3", "learning_rate"),
    ],
)
def test_a_misspelt_key_inside_a_group_of_an_experiment_is_an_error(message, tmp_path, monkeypatch, content, expected):
    # As a file in a directory of --config-dir would be.
    config = OmegaConf.create(content)
    monkeypatch.setattr(ConfigStore.instance(), "repo", dict(ConfigStore.instance().repo))
    ConfigStore.instance().store("misspelt", config, group="experiment", package="_global_")
    try:
        line = message("train", "experiment=misspelt")
    finally:
        del ConfigStore.instance().repo["experiment"]
    assert expected in line


def test_a_type_that_does_not_fit_is_an_error(compose):
    for override in ("batch_size=many", "seed=1.5", "ema.decay=high"):
        with pytest.raises(ConfigCompositionException, match=override.split("=")[1]):
            compose("train", override)


def test_a_target_that_does_not_exist_is_one_line(message):
    line = message("train", "schedule._target_=nowhere.Mine")
    assert line.startswith("error: schedule: ")
    assert "nowhere" in line


# ---------------------------------------------------------------- out of range


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["schedule.beta_T=2"], "beta_T must be in (0, 1], got 2"),
        (["schedule.T=0"], "T must be at least 1, got 0"),
        (["schedule=cosine", "schedule.beta_max=2"], "beta_max must be in (0, 1], got 2"),
        (["schedule=cosine", "schedule.beta_max=1"], "parameterization=eps cannot recover the image at t = 20"),
        (
            ["schedule=cosine", "schedule.beta_max=1", "parameterization=v", "sampler=heun"],
            "choose sampler=ancestral, ddim or dpm_solver",
        ),
        (["loss=min_snr", "loss.gamma=-1"], "gamma must be positive, got -1"),
        (["loss=hybrid"], "choose variance=learned_range or learned, or loss=simple"),
        (["sampler.steps=21"], "sampler.steps=21 is more than schedule.T=20; choose at most 20"),
        (["sampler.steps=0"], "steps must be at least 1"),
        (["time_sampler=importance", "time_sampler.history=0"], "history must be at least 1, got 0"),
        (["network.width=9"], "width must be even and divisible by groups=4, got 9"),
        (["network.dropout=1"], "dropout must be in [0, 1), got 1"),
        (["network.attention=[16]"], "attention at [16] is never reached"),
        (["ema.decay=1"], "ema.decay must be in [0, 1), got 1"),
        (["batch_size=2000"], "batch_size"),
        (["batch_size=0"], "batch_size must be at least 1, got 0"),
        (["seed=-1"], "seed must be at least 0 and below 2^32, got -1"),
        (["num_workers=-1"], "num_workers must be at least 0, got -1"),
        (["warmup_steps=-1"], "warmup_steps must be at least 0, got -1"),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (["trainer.max_steps=-1"], "trainer.max_steps must be at least 1, got -1"),
        (["trainer.max_steps=0"], "trainer.max_steps must be at least 1, got 0"),
        (
            ["+trainer.max_epochs=3"],
            "trainer.max_epochs is set by ddpm itself; set the length of a run with trainer.max_steps",
        ),
        (["trainer.accelerator=abacus"], "abacus"),
        (["callbacks.samples.n=0"], "callbacks.samples.n must be at least 1, got 0"),
        (["callbacks.samples.every_n_steps=0"], "every_n_steps must be at least 1"),
        (["metrics=[]"], "metrics must name at least one metric, got none"),
        (["metrics=[fid,nll]"], "metrics=['nll'] cannot be computed during training, only by evaluate.py"),
        (["metrics=[is]", "metrics.is.splits=0"], "splits must be at least 1, got 0"),
        (["callbacks.quality.features=eyes"], "features must be one of inception, classifier, got 'eyes'"),
        (["callbacks.quality.sampler={_target_:ddpm.sampler.ancestral.Ancestral,steps:21}"], "steps=21 is more than"),
        (["ckpt=nowhere.ckpt"], "there is no checkpoint nowhere.ckpt"),
        (["data=image_folder"], "missing: data.root; give data.root=..."),
    ],
)
def test_what_is_out_of_range_is_one_line_before_training(message, overrides, expected):
    assert expected in message("train", *overrides)


def test_a_misspelt_key_without_plus_for_epochs_says_that_the_key_is_unknown(compose):
    with pytest.raises(ConfigCompositionException, match="max_epochs"):
        compose("train", "trainer.max_epochs=3")


# ---------------------------------------------------------------- checkpoints


def given(path):
    return f"ckpt={json.dumps(str(path))}"


@pytest.mark.parametrize("name", ["evaluate", "sample"])
def test_a_missing_checkpoint_says_where_training_writes_it(message, tmp_path, name):
    assert "training writes last.ckpt" in message(name, given(tmp_path / "last.pt"))


@pytest.mark.parametrize(
    ("name", "share"), [("evaluate", 0), ("evaluate", 0.01), ("evaluate", 0.5), ("evaluate", 0.99), ("sample", 0.5)]
)
def test_a_truncated_checkpoint_is_damaged(message, trained, tmp_path, name, share):
    content = trained.read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
    assert "cannot be read as a checkpoint: it is damaged" in message(name, given(tmp_path / "cut"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
@pytest.mark.parametrize("name", ["evaluate", "sample"])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(message, payload, tmp_path, name, write):
    write({"ddpm_config": {}, "payload": payload(tmp_path / "it_ran")}, tmp_path / "evil")
    assert "holds more than tensors and plain values" in message(name, given(tmp_path / "evil"))
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], {"ddpm_config": 3}])
def test_a_foreign_file_is_not_a_checkpoint_of_ddpm(message, tmp_path, content):
    torch.save(content, tmp_path / "foreign")
    assert "is not a ddpm checkpoint" in message("evaluate", given(tmp_path / "foreign"))


def tampered(trained, path, change):
    content = torch.load(trained, weights_only=True)
    change(content["ddpm_config"])
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("name", "group"),
    [
        *(("evaluate", group) for group in ("schedule", "parameterization", "variance", "loss", "network")),
        *(("sample", group) for group in ("time_sampler", "data", "sampler")),
    ],
)
def test_a_foreign_target_in_a_checkpoint_is_refused_before_its_import(message, trained, tmp_path, spy, name, group):
    path = tampered(trained, tmp_path / "foreign", lambda config: config[group].update(_target_="spy_module.Linear"))
    line = message(name, given(path))
    assert f"{group}._target_ = 'spy_module.Linear'" in line
    assert "if you trust it, pass 'trusted=[spy_module]'" in line
    assert not spy.exists()


def test_trusting_a_package_lets_the_checkpoint_name_it(trained, tmp_path, spy):
    path = tampered(trained, tmp_path / "mine", lambda config: config["schedule"].update(_target_="spy_module.Linear"))
    with pytest.raises(ValueError, match="spy_module"):
        loading.load(path, trusted=["spy", "spy_mod"])
    assert not spy.exists()
    assert loading.load(path, trusted=["spy_module"]).T == 20
    assert spy.exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torch.optim.Adam",
        "ddpm.setup.loading.load",
        "ddpm.metrics.classifier.os.system",
        "ddpm.data.decode.np.load",
        "ddpm.network.unet.UNet.forward",
        "ddpm.schedule.linear.torch.load",
        "ddpm.lit.experiment.experiment",
        "hydra.utils.instantiate",
        3,
    ],
)
def test_no_target_but_a_leaf_of_the_project_is_allowed(target):
    with pytest.raises(ValueError, match="is not an option of ddpm"):
        check_targets({"schedule": {"_target_": target}}, trusted=["mine", "ddpm"])
    with pytest.raises(ValueError, match="is not an option of ddpm"):
        check_targets({"network": {"layers": [{"deep": {"_target_": target}}]}})


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_recursive_", "_convert_"])
def test_keys_that_steer_instantiation_are_refused(key):
    with pytest.raises(ValueError, match="never writes"):
        check_targets({"schedule": {"_target_": "ddpm.schedule.linear.Linear", key: True}})


@pytest.mark.parametrize(
    "entry", [{"root": "${oc.env:HOME}"}, {"root": ["${x}"]}, {"${x}": 1}, {"a": {"b": ["x ${y}"]}}]
)
def test_what_would_be_computed_is_refused(entry):
    with pytest.raises(ValueError, match="never writes"):
        check_targets({"data": entry})


def test_every_target_that_training_stores_is_allowed(trained):
    check_targets(loading.read(trained)["ddpm_config"])


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("evaluate", ["metrics=[]"], "metrics must name at least one metric"),
        ("evaluate", ["nll.estimator=half"], "nll.estimator must be sampled or full, got 'half'"),
        ("evaluate", ["metrics=[nll]", "nll.evaluations=2"], "nll.evaluations must be at least 3"),
        ("evaluate", ["metrics=[nll]", "nll.steps=21"], "nll.steps must be in 1..20, or null"),
        ("evaluate", ["metrics=[nll]", "nll.n_images=0"], "nll.n_images must be at least 1, got 0"),
        ("evaluate", ["metrics=[ode]", "ode.divergence=guess"], "ode.divergence must be hutchinson or exact"),
        ("evaluate", ["metrics=[ode]", "ode.rtol=0"], "ode.rtol and ode.atol must be above 0"),
        ("evaluate", ["weights=best"], "weights must be ema or raw, got 'best'"),
        ("evaluate", ["split=validation"], 'split must be "train" or "test"'),
        ("evaluate", ["n_samples=0"], "n_samples must be at least 1, got 0"),
        ("evaluate", ["batch_size=0"], "batch_size must be at least 1, got 0"),
        ("evaluate", ["device=abacus"], "device=abacus is not available here"),
        ("evaluate", ["seed=-1"], "seed must be at least 0, got -1"),
        ("evaluate", ["metrics=[fid]", "features=eyes"], "features must be one of inception, classifier, got 'eyes'"),
        ("evaluate", ["metrics=[fid]", "sampler=ancestral", "sampler.steps=21"], "sampler.steps=21 is more than"),
        pytest.param(
            "evaluate",
            ["metrics=[fid]", "n_samples=1"],
            "fid needs at least 2 images, got 1",
            marks=pytest.mark.slow,  # it trains the classifier
        ),
        ("sample", ["n=0"], "n must be at least 1, got 0"),
        ("sample", ["format=gif"], "format must be png or npz, got 'gif'"),
        ("sample", ["weights=best"], "weights must be ema or raw, got 'best'"),
        ("sample", ["device=abacus"], "device=abacus is not available here"),
        ("sample", ["seed=-1"], "seed must be at least 0, got -1"),
        ("sample", ["sampler=ancestral", "sampler.steps=21"], "sampler.steps=21 is more than"),
    ],
)
def test_what_is_out_of_range_for_a_checkpoint_is_one_line(message, trained, name, overrides, expected):
    assert expected in message(name, given(trained), *overrides)


def test_the_wrong_kind_of_weights_is_one_line(message, trained, tmp_path):
    path = tampered(trained, tmp_path / "other", lambda config: config["network"].update(width=16))
    assert "the ema weights do not fit the network" in message("evaluate", given(path))


# ---------------------------------------------------------------- classes and measurements


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("sample", ("labels=[0]",), "labels=[0] need a conditional model"),
        ("sample", ("guidance=1",), "guidance=1 needs a conditional model"),
        ("evaluate", ("guidance=1",), "train one with conditioning=class"),
        ("evaluate", ("metrics=[guidance]",), "metrics=[guidance] needs a conditional model"),
        ("sample", ("task=interpolate", "labels=[0]"), "task=interpolate takes no labels and no guidance"),
        ("sample", ("task=inverse",), "task=inverse needs operator=..."),
        ("sample", ("operator.size=3", "task=inverse", "solver=dps"), "operator has no _target_"),
        ("sample", ("operator=inpaint",), "task=grid takes no operator and no solver; use task=inverse"),
        ("sample", ("task=inverse", "operator=inpaint"), "task=inverse needs solver=..."),
        ("sample", ("task=inverse", "operator=colourise", "solver=dps"), "needs images with 3 channels, got 1"),
        ("sample", ("task=inverse", "operator=inpaint", "solver=dps", "draws=0"), "draws must be at least 1, got 0"),
        ("sample", ("task=inverse", "operator=inpaint", "solver=dps", "noise=-1"), "noise must be at least 0"),
        ("sample", ("task=inverse", "operator=inpaint", "solver=dps", "input=no.png"), "no.png"),
        (
            "sample",
            ("task=inverse", "operator=function", "operator.function=math.tanh", "solver=mmps"),
            "choose solver=dps",
        ),
        ("sample", ("task=inverse", "operator=inpaint", "+operator.sizes=3", "solver=dps"), "sizes"),
        ("sample", ("sampler=ddim", "sampler.clip=1.5"), "sampler.clip must be true, false, published, or a quantile"),
    ],
)
def test_classes_and_measurements_that_cannot_be(message, trained, name, overrides, expected):
    assert expected in message(name, f"ckpt='{trained}'", *overrides)


def test_lpips_without_its_weights(message, trained, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    options = ("task=inverse", "operator=inpaint", "solver=dps", "lpips=true")
    assert "lpips=true needs torchvision's AlexNet weights" in message("sample", f"ckpt='{trained}'", *options)


@pytest.fixture(scope="session")
def conditional(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    train(folder, "trainer.max_steps=2", "conditioning=class")
    return folder / "last.ckpt"


@pytest.mark.parametrize("labels", ["[10]", "[-1]", "[]"])
def test_labels_that_the_model_does_not_know(message, conditional, labels):
    assert "labels must be in 0..9, the classes of the model" in message(
        "sample", f"ckpt='{conditional}'", f"labels={labels}"
    )


def test_an_interval_that_is_none(message, conditional):
    line = message("sample", f"ckpt='{conditional}'", "guidance=1", "guidance_interval=[3]")
    assert "guidance_interval must be the first and last time" in line


def test_a_sweep_over_nothing(message, conditional):
    line = message("evaluate", f"ckpt='{conditional}'", "metrics=[guidance]", "guidance_scales=[]")
    assert "guidance_scales must be numbers" in line


def test_data_of_other_classes_than_the_model(message, conditional, tmp_path):
    content = torch.load(conditional, weights_only=True)
    content["ddpm_config"]["image"]["classes"] = 9
    network = "ema.network.label.weight"
    content["state_dict"][network] = content["state_dict"][network][:10]
    torch.save(content, tmp_path / "other")
    line = message("evaluate", f"ckpt='{tmp_path}/other'", "metrics=[nll]")
    assert "the data have 10 classes, but the checkpoint's model was trained with 9" in line


def test_a_conditional_model_of_data_without_classes(message, tmp_path):
    from PIL import Image

    for i in range(20):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    data = (
        "data=image_folder",
        f"data.root='{tmp_path}'",
        "data.image_size=8",
        "data.channels=1",
        "data.test_fraction=0.2",
    )
    assert "conditioning=class needs data with classes" in message("train", *data, "conditioning=class", "batch_size=4")


def test_a_checkpoint_from_before_there_were_classes_is_unconditional(trained, tmp_path):
    content = torch.load(trained, weights_only=True)
    del content["ddpm_config"]["conditioning"], content["ddpm_config"]["image"]["classes"]
    torch.save(content, tmp_path / "older")
    assert loading.load(tmp_path / "older").classes == 0
