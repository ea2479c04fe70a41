"""The folder of a run: one run writes into it, and it writes nowhere else."""

import errno
import fcntl
import os
import re
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from ddpm.lit.experiment import experiment
from ddpm.setup import resolvers
from ddpm.setup.resolvers import folder_name
from ddpm.setup.run_folder import Folders, claimed
from ddpm.support import files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """(folder, ckpt) -> what `claimed` is given."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    files.warn_once.cache_clear()
    return lambda folder=tmp_path, ckpt=None: OmegaConf.create({"output_dir": str(folder), "ckpt": ckpt and str(ckpt)})


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- one run


def test_who_opened_the_lock_before_its_holder_let_go_does_not_share_it_with_the_next(job, monkeypatch):
    first, second, flock = claimed(job()), claimed(job()), fcntl.flock

    def late(handle, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        first.__exit__(None, None, None)
        second.__enter__()
        flock(handle, how)

    first.__enter__()
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ValueError, match="another run is writing to"), claimed(job()):
        pass
    second.__exit__(None, None, None)


def test_a_folder_that_is_taken_is_refused_and_free_again_afterwards(job, tmp_path):
    with claimed(job()), pytest.raises(ValueError, match="another run is writing to"), claimed(job()):
        pass
    with claimed(job()) as cfg:
        assert cfg is not None


def test_a_refused_run_changes_nothing(job, tmp_path):
    for name in (*(f".hydra/{part}.yaml" for part in ("config", "hydra", "overrides")), "last.ckpt", ".last.ckpt.17"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of the other run")
    before = content(tmp_path)
    with pytest.raises(ValueError, match="of another run, which would be lost"), claimed(job()):
        pass
    assert content(tmp_path) | before == content(tmp_path)
    assert {path.name for path in {*content(tmp_path)} - {*before}} == {".lock"}  # which is empty


@pytest.fixture
def hydra(job, tmp_path, monkeypatch):
    """Hydra itself, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    resolvers.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().hydra


def training(cfg):
    with claimed(cfg) as job:
        experiment(job).run()


@pytest.mark.slow
def test_a_resumed_run_that_is_refused_leaves_the_configuration_of_the_run_as_it_was(hydra, bare, tmp_path):
    options = [*bare, f"hydra.run.dir={tmp_path}", "trainer.max_steps=2"]
    hydra.run("train", training, options)
    before = content(tmp_path)
    assert {path.name for path in before} >= {"config.yaml", "hydra.yaml", "overrides.yaml", "last.ckpt", "metrics.csv"}
    overrides = (tmp_path / ".hydra" / "overrides.yaml").read_text()
    assert overrides.splitlines() == [f"- {option}" for option in options if not option.startswith("hydra.")]
    with pytest.raises(ValueError, match="was trained with other settings of loss"):
        hydra.run("train", training, [*options, "loss=p2", f"ckpt={tmp_path}/last.ckpt", "trainer.max_steps=3"])
    assert content(tmp_path) == before


THIS_YEAR = "${now:%Y}"  # runs of one second, however long the test takes


@pytest.mark.slow
def test_runs_of_one_second_get_folders_of_their_own(hydra):
    def run(*overrides):
        return hydra.run("train", lambda cfg: cfg.output_dir, list(overrides)).return_value

    found = [Path(run(f"hydra.run.dir=runs/{THIS_YEAR}")) for _ in range(2)]
    assert [path.name[4:] for path in found] == ["", "_1"]
    assert not any(content(path) for path in found)  # Hydra writes nothing
    assert run(f"hydra.run.dir=runs/{found[0].name}") == str(found[0])  # what the user names is taken as it is


@pytest.mark.slow
def test_sweeps_of_one_second_get_folders_of_their_own_and_their_jobs_are_named_after_what_differs(hydra):
    def sweep(*overrides):
        jobs = hydra.multirun("train", lambda cfg: cfg.output_dir, ["seed=3", "network.dropout=0.1", *overrides])
        return [Path(done.return_value) for done in jobs[0]]

    swept = ("loss=simple,vlb", "+trainer.min_steps=1", f"hydra.sweep.dir=sweeps/{THIS_YEAR}")
    first, second = sweep(*swept), sweep(*swept)
    assert [path.name for path in first] == [path.name for path in second] == ["0_loss-simple", "1_loss-vlb"]
    assert {path.parent.name[4:] for path in first} == {""}
    assert {path.parent.name[4:] for path in second} == {"_1"}


def test_another_sweep_in_a_folder_keeps_the_description_of_the_first(hydra, tmp_path):
    def start(loss):  # up to where Hydra writes
        options = [f"loss={loss}", "hydra.sweep.dir=sweep"]
        config = hydra.compose_config("train", options, RunMode.MULTIRUN, with_log_configuration=False)
        Folders().on_multirun_start(config)
        (tmp_path / "sweep").mkdir(exist_ok=True)
        OmegaConf.save(config, tmp_path / "sweep" / "multirun.yaml")
        return {path.name: path.read_text() for path in (tmp_path / "sweep").iterdir()}

    (first,) = start("simple,vlb").values()
    assert start("simple,vlb") == {"multirun.yaml": first}  # repeated
    assert start("p2").pop("multirun_1.yaml") == first


@pytest.mark.parametrize("long", ["x" * 300, "ä" * 150, "/a/long/path" * 30])
@pytest.mark.parametrize("swept", [1, 2, 12])
def test_folders_of_a_sweep_show_what_differs_need_no_quotes_and_are_not_too_long(long, swept):
    def name(last):
        return folder_name(7, ",".join(f"key{i}.ckpt-{long}{last if i == swept - 1 else 0}" for i in range(swept)))

    for found in (name(1), name(2)):
        assert re.fullmatch(r"7(_key[\w.+-]*)+", found)
        assert len(found.encode()) <= 255
    assert name(1)[2:] != name(2)[2:]
    assert folder_name(0, "loss-simple,callbacks-[a,b]") == "0_loss-simple_callbacks--a_b-"


# ---------------------------------------------------------------- file systems


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_warned_of_once(job, tmp_path, monkeypatch, capsys, number):
    def flock(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):
        with claimed(job()) as cfg:
            assert cfg is not None
    assert capsys.readouterr().err.count("warning: this file system has no locks") == 1


def test_a_file_system_that_cannot_flush_folders_is_warned_of_once(job, tmp_path, monkeypatch, capsys):
    def fsync(handle, fsync=os.fsync):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for text in ("one", "two"):
        with files.written(tmp_path / "file", durable=True) as temporary:
            temporary.write_text(text)
        assert (tmp_path / "file").read_text() == text
    assert capsys.readouterr().err.count("warning: this file system does not support flushing") == 1


def test_a_disk_that_fails_is_an_error(job, tmp_path, monkeypatch):
    def fails(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output"), files.written(tmp_path / "file", durable=True) as temporary:
        temporary.touch()
    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(OSError, match="Input/output"), claimed(job()):
        pass


# ---------------------------------------------------------------- links


WRITTEN = (".lock", ".hydra", ".hydra/config.yaml", "metrics.csv", "samples", "last.ckpt", "results.json", "wandb/run")


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("target", ["file", "nothing"])
def test_a_run_does_not_follow_links_out_of_its_folder(job, tmp_path, name, target):
    precious, folder = tmp_path / "file", tmp_path / "downloaded"
    precious.write_text("precious")
    link = folder / name
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(tmp_path / target, link.parent))
    with (
        pytest.raises(ValueError, match=f"{name} is a link that leads out of"),
        claimed(job(folder, folder / "x.ckpt")),
    ):
        pass
    assert precious.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()
    assert os.listdir(link.parent) == [link.name]


def test_links_within_the_folder_and_to_the_folder_itself_are_followed(job, tmp_path):
    (tmp_path / "scratch" / "wandb" / "run" / "logs").mkdir(parents=True)
    (tmp_path / "scratch" / "wandb" / "latest-run").symlink_to("run")
    (tmp_path / "scratch" / "wandb" / "run" / "logs" / "debug-core.log").symlink_to(tmp_path / "cache.log")  # W&B's own
    (tmp_path / "run").symlink_to("scratch")
    with claimed(job(tmp_path / "run")) as cfg:
        assert cfg is not None


def test_a_pipe_in_the_folder_is_refused(job, tmp_path):
    os.mkfifo(tmp_path / "metrics.csv")
    with pytest.raises(ValueError, match=r"metrics\.csv is neither a file nor a folder"), claimed(job()):
        pass
