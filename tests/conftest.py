"""What the tests of the edge share: composed configurations, and runs that take an instant."""

import json
import os
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from ddpm.setup import resolvers

ROOT = Path(__file__).parents[1]

# A model of 8x8 digits that trains in a second.
TINY = (
    "network.width=8",
    "network.groups=4",
    "network.blocks=1",
    "schedule.T=20",
    "sampler.steps=null",
    "batch_size=16",
    "warmup_steps=3",
    "trainer.max_steps=6",
    "trainer.accelerator=cpu",
    "speed=reference",
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=2",
    "~callbacks.progress",
    "callbacks.samples.n=4",
    "callbacks.bits_per_dim.n_images=8",
    "callbacks.quality.n_samples=100",
    "callbacks.checkpoint.every_n_steps=3",
)
BARE = tuple(override for override in TINY if "callbacks." not in override) + ("callbacks=[checkpoint]",)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    """One for all workers, outside of the user's: what one has compiled or trained, the others find."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_CACHE", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"))
        yield


@pytest.fixture(autouse=True)
def _environment():
    """What an entry point sets for its process does not reach the next test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def compose():
    """(name, *overrides) -> the configuration that the entry point `name`.py would be given."""
    resolvers.register()

    def composed(name, *overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return hydra_compose(name, list(overrides))

    return composed


@pytest.fixture(scope="session")
def train(compose):
    """(folder, *overrides) -> the experiment, trained as train.py does; by default tiny, with checkpoints alone."""
    from ddpm.lit.experiment import experiment

    def trained(folder, *overrides, base=BARE):
        cfg = compose("train", *base, *overrides, f"output_dir={json.dumps(str(folder))}")
        built = experiment(cfg)
        built.run()
        return built

    return trained


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A folder, as of a run that was downloaded, whose modules leave a file called RAN_... where one is imported."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("ddpm", "hydra", "joblib", "json", "lightning", "multiprocessing", "submitit", "torch"):
        (folder / f"{name}.py").write_text(f"open({str(folder / f'RAN_{name}')!r}, 'w').close()\n")
    return folder


@pytest.fixture(scope="session")
def tiny():
    """The options of a tiny run with every callback."""
    return TINY


@pytest.fixture(scope="session")
def bare():
    """The options of a tiny run with no callback but checkpoints."""
    return BARE
