"""Every file of conf/ composes and builds; every combination trains, or says why it cannot."""

import json
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from omegaconf import OmegaConf
from PIL import Image

from ddpm.chain.process import Process
from ddpm.data.digits import Digits
from ddpm.data.source import Source
from ddpm.lit import loggers
from ddpm.lit.between_steps import BetweenSteps
from ddpm.lit.callbacks.periodic import Periodic
from ddpm.lit.experiment import experiment
from ddpm.lit.interrupt import Signals
from ddpm.lit.plan import planned
from ddpm.lit.trainer import build_trainer
from ddpm.loss.base import Loss
from ddpm.parameterization.base import Parameterization
from ddpm.sampler.base import Sampler
from ddpm.schedule.base import Schedule
from ddpm.setup import build
from ddpm.setup.schema import plain
from ddpm.time_sampler.base import TimeSampler
from ddpm.variance.base import Variance

CONF = Path(__file__).parents[2] / "conf"
KINDS = {
    "schedule": Schedule,
    "parameterization": Parameterization,
    "variance": Variance,
    "loss": Loss,
    "time_sampler": TimeSampler,
    "sampler": Sampler,
    "data": Source,
}


def names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def every(*groups):
    return [(group, name) for group in groups for name in names(group)]


def quoted(key, path):
    return f"{key}={json.dumps(str(path))}"


@pytest.fixture
def composed(compose, tmp_path):
    """Overrides -> configuration of train.py, its folder given and its folder of images too."""

    def of(*overrides):
        cfg = compose("train", quoted("output_dir", tmp_path), "trainer.accelerator=cpu", *overrides)
        if OmegaConf.is_missing(cfg.data, "root"):
            cfg.data.root = str(tmp_path / "images")
        return cfg

    return of


# ---------------------------------------------------------------- every option


@pytest.mark.parametrize(("group", "name"), every(*KINDS))
def test_every_option_composes_and_builds(composed, group, name):
    node = composed(f"{group}={name}")[group]
    given = {"T": 1000} if group == "time_sampler" else {}
    part = build.instance(group, node, **given)
    assert isinstance(part, KINDS[group])
    assert build.option(part) == name


@pytest.mark.parametrize("name", names("schedule"))
def test_every_schedule_goes_to_noise_at_its_own_length(composed, name):
    beta = build.instance("schedule", composed(f"schedule={name}")["schedule"]).beta()
    assert beta.shape == (1000,)
    assert (1 - beta).prod() < 5e-2


@pytest.mark.parametrize("name", names("optimizer"))
def test_every_optimizer_waits_for_the_parameters(composed, name):
    make = build.instance("optimizer", composed(f"optimizer={name}")["optimizer"])
    optimizer = make([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.defaults["lr"] == 1e-3  # of the experiment, digits


@pytest.mark.parametrize("name", names("callbacks"))
def test_every_choice_of_callbacks_builds_and_leaves_the_others_out(composed, name):
    trainer = _trainer_of(composed(f"callbacks={name}"))
    files = {"model_checkpoint": "best"}  # of Lightning's callbacks
    found = {type(callback).__module__.rsplit(".", 1)[-1] for callback in trainer.callbacks}
    ours = {files.get(each, each) for each in found} & set(names("callbacks"))
    added = {"default", "best", "early_stopping"}
    assert ours == (set(names("callbacks")) - added if name == "default" else {name})


def test_without_its_callback_there_is_no_progress_bar(composed):
    trainer = _trainer_of(composed("~callbacks.progress"))
    assert trainer.progress_bar_callback is None


def test_checkpoint_acts_after_whatever_may_move_the_results(composed):
    trainer = _trainer_of(composed())
    assert (
        build.option([callback for callback in trainer.callbacks if isinstance(callback, Periodic)][-1]) == "checkpoint"
    )


@pytest.mark.parametrize("name", names("trainer"))
def test_every_trainer_builds(composed, name):
    trainer = _trainer_of(composed(f"trainer={name}"))
    assert trainer.max_epochs == -1
    assert trainer.gradient_clip_val == 1.0


@pytest.mark.parametrize("name", names("logger"))
def test_every_logger_builds(composed, name):
    cfg = composed(f"logger={name}")
    logger = build.instance(f"logger.{name}", cfg.logger[name])
    expected = {"csv": CSVLogger, "tensorboard": TensorBoardLogger, "wandb": WandbLogger}
    assert isinstance(logger, expected.get(name, Logger))


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """A user of W&B who has not logged in, where its server answers."""
    monkeypatch.setattr(loggers, "_answers", lambda host: True)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("a question was asked"))
    return tmp_path / "netrc"


def test_wandb_is_online_exactly_if_there_is_a_key_and_no_other_wish(composed, no_key, monkeypatch):
    def offline(*overrides):
        return build.instance("logger.wandb", composed("logger=wandb", *overrides).logger.wandb)._offline

    assert offline()
    no_key.write_text("machine api.wandb.ai login user password 0123456789")
    assert not offline()
    assert offline("logger.wandb.offline=true")
    no_key.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert not offline()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert offline()


def test_several_loggers_at_once(composed):
    assert len(_trainer_of(composed("logger=[csv,tensorboard]")).loggers) == 2


def test_an_image_folder_needs_its_root_and_takes_any(composed, compose, tmp_path):
    assert OmegaConf.is_missing(compose("train", "data=image_folder").data, "root")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for i in range(4):
            pixels = torch.randint(256, (20, 16, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "images" / split / f"{i}.png")
    source = build.source(composed("data=image_folder", "data.image_size=16"))
    assert source.load("test").pixels([0, 3]).shape == (2, 3, 16, 16)


# ---------------------------------------------------------------- every experiment


def _trainer_of(cfg):
    process = Process(build.instance("schedule", cfg.schedule).beta())
    return build_trainer(planned(plain(cfg)), process, BetweenSteps(Signals(), lambda rows: None))


def _network_of(cfg):
    source, variance = build.source(cfg), build.instance("variance", cfg.variance)
    channels, size, _ = source.shape
    out = channels * (1 + variance.extra_channels)
    with torch.device("meta"):
        return build.instance("network", cfg.network, image_size=size, in_channels=channels, out_channels=out)


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes_and_its_parts_build_and_fit(composed, name):
    cfg = composed(f"experiment={name}")
    _network_of(cfg)
    for group in ("schedule", "parameterization", "optimizer"):
        build.instance(group, cfg[group])
    build.variance(cfg.variance, build.instance("loss", cfg.loss))
    assert len(_trainer_of(cfg).callbacks) >= 6


# parameters, dropout, learning rate, batch, variance, steps, flip
OF_THE_PAPER = {
    "cifar10": (35_746_307, 0.1, 2e-4, 128, "fixed_large", 800_000, True),
    "celebahq": (113_673_219, 0.0, 2e-5, 64, "fixed_small", 500_000, True),
    "lsun_bedroom": (113_673_219, 0.0, 2e-5, 64, "fixed_small", 2_400_000, False),
    "lsun_bedroom_large": (255_677_955, 0.0, 2e-5, 64, "fixed_small", 1_150_000, False),
    "lsun_cat": (113_673_219, 0.0, 2e-5, 64, "fixed_small", 1_800_000, True),
    "lsun_church": (113_673_219, 0.0, 2e-5, 64, "fixed_small", 1_200_000, True),
}


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_the_experiments_of_ho_et_al_2020_carry_the_numbers_of_the_paper(composed, name):
    cfg = composed(f"experiment=ho2020_{name}")
    parameters = sum(p.numel() for p in _network_of(cfg).parameters())
    variance = build.option(build.instance("variance", cfg.variance))
    row = (parameters, cfg.network.dropout, cfg.optimizer.lr, cfg.batch_size, variance, cfg.trainer.max_steps)
    assert row + (cfg.data.flip,) == OF_THE_PAPER[name]
    assert (cfg.schedule.T, cfg.schedule.beta_1, cfg.schedule.beta_T) == (1000, 1e-4, 0.02)
    assert (cfg.ema.decay, cfg.ema.warm_up, cfg.warmup_steps) == (0.9999, False, 5000)
    assert (cfg.trainer.gradient_clip_val, cfg.sampler.steps, cfg.callbacks.quality.n_samples) == (1.0, None, 50_000)
    assert (cfg.callbacks.quality.features, cfg.callbacks.bits_per_dim.clip) == ("inception", "published")
    assert [build.option(build.instance(g, cfg[g])) for g in ("schedule", "parameterization", "loss")] == [
        "linear",
        "eps",
        "simple",
    ]
    assert cfg.optimizer._target_ == "torch.optim.Adam"
    assert (list(cfg.optimizer.betas), cfg.optimizer.eps, cfg.optimizer.weight_decay) == ([0.9, 0.999], 1e-8, 0.0)


def test_a_choice_on_the_command_line_comes_before_that_of_the_experiment(composed):
    cfg = composed("parameterization=v", "loss=min_snr", "experiment=ho2020_cifar10", "batch_size=3")
    assert cfg.parameterization._target_.endswith(".V")
    assert cfg.loss._target_.endswith(".MinSNR")
    assert cfg.batch_size == 3


@pytest.fixture
def named(compose):
    """Overrides -> the configuration of train.py and the name of the run's folder."""

    def of(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra_compose("train", list(overrides), return_hydra_config=True)
        assert cfg.hydra.job.name  # which launchers read before Hydra's own resolver works
        HydraConfig.instance().set_config(cfg)
        try:
            return cfg, Path(cfg.hydra.run.dir).parent.name
        finally:
            HydraConfig.instance().cfg = None

    return of


PAPER = {"batch_size": 128, "warmup_steps": 5000, "ema": {"decay": 0.9999, "warm_up": False}}
DIGITS = {"batch_size": 64, "warmup_steps": 200, "ema": {"decay": 0.999, "warm_up": True}}


@pytest.mark.parametrize(
    ("overrides", "name", "expected", "lr", "steps", "sampled"),
    [
        ([], "digits", DIGITS, 1e-3, 1500, 250),
        (["parameterization=eps", "loss=simple"], "digits", DIGITS, 1e-3, 1500, 250),
        (["parameterization=x0", "loss=vlb"], "digits", DIGITS, 1e-3, 1500, 250),
        (["experiment=digits"], "digits", DIGITS, 1e-3, 1500, 250),
        (["data=cifar10", "network=unet_32x32"], "cifar10", PAPER, 2e-4, 800_000, None),
        (["data=image_folder", "network=unet_64x64"], "image_folder", PAPER, 2e-4, 800_000, None),
        (["experiment=none"], "digits", PAPER, 2e-4, 800_000, None),
        (["experiment=ho2020_cifar10"], "ho2020_cifar10", PAPER, 2e-4, 800_000, None),
    ],
)
def test_the_settings_and_the_name_of_the_digits_stay_with_them(named, overrides, name, expected, lr, steps, sampled):
    cfg, folder = named(*overrides)
    assert folder == name
    assert {key: cfg[key] for key in expected} == expected
    assert (cfg.optimizer.lr, cfg.trainer.max_steps, cfg.sampler.steps) == (lr, steps, sampled)


def test_cifar10_without_an_experiment_is_trained_as_in_the_paper(composed):
    cfg, paper = composed("data=cifar10", "network=unet_32x32"), composed("experiment=ho2020_cifar10")
    differing = {key for key in cfg if cfg[key] != paper[key]}
    assert differing == {"callbacks", "metrics"}  # which measure, and train nothing


@pytest.mark.parametrize("size", [8, 28, 32, 64, 128, 256])
def test_there_is_a_network_for_images_of_each_size(composed, size):
    node = composed(f"network=unet_{size}x{size}").network
    with torch.device("meta"):
        network = build.instance("network", node, image_size=size, in_channels=3, out_channels=3)
    noted = (CONF / "network" / f"unet_{size}x{size}.yaml").read_text()
    if "parameters" in noted:
        assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in noted


def test_images_that_do_not_fit_the_network_are_told_which_there_are(composed):
    default = composed("data=image_folder").data.image_size
    assert f"unet_{default}x{default}" in names("network")
    for size in (256, 9):
        with pytest.raises(ValueError, match=r"unet_8x8, unet_28x28, unet_32x32, .*unet_128x128") as shown:
            build.diffusion(composed(), (3, size, size), 256, 0)
        assert all(name in str(shown.value) for name in names("network"))
    with pytest.raises(ValueError, match="width must be even") as shown:
        build.diffusion(composed("network.width=9"), (3, 8, 8), 256, 0)
    assert "unet" not in str(shown.value)


# ---------------------------------------------------------------- every combination

SMALL = (
    "network.width=8",
    "network.groups=4",
    "network.blocks=1",
    "schedule.T=20",
    "sampler.steps=null",
    "batch_size=4",
    "callbacks=[]",
    "logger=[]",
    "trainer.max_steps=2",
    "trainer.limit_val_batches=0",
    "trainer.log_every_n_steps=1",
)
COMBINED = ("schedule", "time_sampler", "variance")


@pytest.fixture(scope="module")
def choices(compose, tmp_path_factory):
    """(base, {group: {name: node}}): every option as Hydra composes it, and proof that it changes its group alone."""
    folder = quoted("output_dir", tmp_path_factory.mktemp("combinations"))
    composed = partial(compose, "train", folder, "trainer.accelerator=cpu", *SMALL)
    base, found = composed(), {}
    for group, name in every("parameterization", "loss", *COMBINED):
        cfg = composed(f"{group}={name}")
        assert {key for key in cfg if cfg[key] != base[key]} <= {group}
        found.setdefault(group, {})[name] = cfg[group]
    return base, found


@pytest.fixture(scope="module")
def digits():
    """The digits, read once."""
    source = Digits()
    splits = {split: source.load(split) for split in ("train", "test")}
    source.load = splits.__getitem__
    return source


def combined(choices, **chosen):
    base, found = choices
    cfg = base.copy()
    for group, name in chosen.items():
        cfg[group] = found[group][name]
    return cfg


def test_merging_options_is_what_hydra_composes(choices, compose):
    chosen = dict(
        parameterization="x0", loss="hybrid", variance="learned", schedule="cosine", time_sampler="importance"
    )
    merged = combined(choices, **chosen)
    composed = compose(
        "train",
        quoted("output_dir", merged.output_dir),
        "trainer.accelerator=cpu",
        *SMALL,
        *(f"{group}={name}" for group, name in chosen.items()),
    )
    assert plain(merged) == plain(composed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("loss", names("loss"))
@pytest.mark.parametrize("parameterization", names("parameterization"))
def test_every_pair_of_choices_trains_or_is_refused_with_the_remedy(
    choices, digits, monkeypatch, parameterization, loss
):
    monkeypatch.setattr(build, "source", lambda cfg: digits)
    trained = refused = 0
    samplers = names("time_sampler")
    schedules = names("schedule")
    first = names("loss").index(loss) + names("parameterization").index(parameterization)
    for (v, variance), s in product(enumerate(names("variance")), range(2)):
        turn = first + v + s
        schedule = schedules[turn % len(schedules)]
        chosen = dict(parameterization=parameterization, loss=loss, variance=variance, schedule=schedule)
        cfg = combined(choices, **chosen, time_sampler=samplers[turn % len(samplers)])
        try:
            run = experiment(cfg)
        except ValueError as error:
            message = str(error)
            assert f"loss={loss}" in message
            assert f"variance={variance}" in message
            assert "; choose " in message
            refused += 1
            continue
        run.trainer.fit(run.module, datamodule=run.data)
        assert run.trainer.global_step == 2
        assert run.trainer.callback_metrics["train/loss"].isfinite()
        network = run.module.diffusion.network
        assert all(p.isfinite().all() for p in network.parameters())
        # It starts at zero; every output channel is trained, that of a learned variance too.
        assert (network.conv_out.weight.detach().flatten(1).norm(dim=1) > 0).all()
        trained += 1
    fits = {"hybrid": 2, "vlb": 4}.get(loss, 2)
    assert (trained, refused) == (2 * fits, 2 * (4 - fits))


@pytest.mark.slow
@pytest.mark.usefixtures("no_key")
def test_without_a_key_a_wandb_run_is_written_offline(composed, tmp_path):
    logger = build.instance("logger.wandb", composed("logger=wandb").logger.wandb)
    logger.log_metrics({"fid": 1.0}, step=3)
    logger.experiment.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
