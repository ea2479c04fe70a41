"""What the tests of configurations and of bad input share."""

import json
import os
import sys

import pytest

from ddpm.commands import cli, errors
from ddpm.commands.evaluate import evaluate
from ddpm.commands.sample import sample
from ddpm.lit.experiment import experiment

RUN = {"evaluate": evaluate, "sample": sample, "train": lambda cfg: experiment(cfg).run()}


@pytest.fixture
def message(compose, tiny, tmp_path):
    """(entry point, *overrides) -> the one line that the user is shown."""

    def of(name, *overrides):
        base = tiny if name == "train" else ()
        cfg = compose(name, *base, f"output_dir={json.dumps(str(tmp_path / 'run'))}", *overrides)

        def checked():
            cli.check(cfg)
            RUN[name](cfg)

        with pytest.raises(errors.EXPLAINED) as shown:
            checked()
        line = errors.explained(shown.value)
        assert line.startswith("error: ")
        assert "\n" not in line
        assert not list(tmp_path.rglob("*.ckpt"))
        return line

    return of


@pytest.fixture(scope="session")
def trained(train, tmp_path_factory):
    """A checkpoint of a tiny run."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, "trainer.max_steps=2")
    return folder / "last.ckpt"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def payload():
    """(path) -> an object that makes a folder there when it is unpickled."""
    return Payload


@pytest.fixture
def spy(tmp_path, monkeypatch):
    """A module that leaves a trace when it is imported."""
    (tmp_path / "spy_module.py").write_text(
        f"import os; os.mkdir({str(tmp_path / 'it_ran')!r})\nfrom ddpm.schedule.linear import Linear\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "it_ran"
    sys.modules.pop("spy_module", None)
