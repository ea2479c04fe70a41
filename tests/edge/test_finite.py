"""No number is computed from values that are not finite, and nothing of them is written."""

import json
from types import SimpleNamespace

import pytest
import torch

from ddpm.commands.evaluate import evaluate
from ddpm.commands.sample import sample
from ddpm.commands.tasks import grid as grid_task
from ddpm.data.scaling import to_pixels
from ddpm.likelihood import probability_flow
from ddpm.likelihood.sampled_bound import pilot
from ddpm.lit import report
from ddpm.parallel.gathered import Gathered
from ddpm.setup.run_folder import comparable
from ddpm.solver.base import conjugate_gradient
from ddpm.support.files import as_json, write_json
from ddpm.support.finite import finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_grey_level_is_the_nearest_to_what_is_not_finite(value):
    with pytest.raises(ValueError, match=r"1 of 6 values of the images are not finite numbers"):
        to_pixels(torch.tensor([[0.0, 1.0, -1.0], [value, 0.5, 2.0]]), 256)


def test_values_that_are_not_finite_are_not_gathered():
    bits = Gathered(("bits",))
    bits.update({"bits": torch.zeros(2)}, torch.arange(2))
    with pytest.raises(ValueError, match="1 of 2 values of the bits are not finite"):
        bits.update({"bits": torch.tensor([1.0, torch.nan])}, torch.arange(2))


def test_what_is_finite_stays_as_it_is():
    values = torch.tensor([1e38, -0.0])
    assert finite(values, "values") is values
    assert finite(torch.tensor([3], dtype=torch.uint8), "values") == 3


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_solver_does_not_take_what_is_not_finite_for_solved(iterations):
    found = conjugate_gradient(lambda u: u * torch.nan, torch.ones(2, 3), iterations)
    assert not found.isfinite().any()


@pytest.fixture(scope="module")
def checkpoint(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, "seed=2")
    return folder / "last.ckpt"


@pytest.fixture
def damaged(monkeypatch):
    """A network whose weights are not finite once the checkpoint is read."""
    from ddpm.setup import loading as checkpoints

    model = checkpoints.model

    def poisoned(*args):
        built = model(*args)
        built.network.conv_out.weight.fill_(torch.nan)
        return built

    monkeypatch.setattr(checkpoints, "model", poisoned)


TASKS = {
    "grid": (),
    "progressive": (),
    "interpolate": (),
    "slerp": (),
    "encode": (),
    **{solver: ("task=inverse", "operator=inpaint", f"solver={solver}", "draws=1")
       for solver in ("dps", "pigdm", "mmps", "replacement")},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("damaged")
@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_sampled_with_weights_that_are_not_finite(compose, checkpoint, tmp_path, task):
    out = tmp_path / "new" / "out"
    options = TASKS[task] if "task=inverse" in TASKS[task] else (f"task={task}", *TASKS[task])
    short = ("sampler=ddim", "sampler.steps=2", "n=2")
    with pytest.raises(ValueError, match=r"values of the .* are not finite numbers"):
        sample(compose("sample", f"ckpt='{checkpoint}'", f"output_dir='{out}'", *options, *short))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("damaged")
@pytest.mark.parametrize(
    "options",
    [
        ("metrics=[is]", "n_samples=10", "features=classifier", "save_samples=true"),
        ("metrics=[nll]",),
        ("metrics=[nll]", "nll.estimator=full"),
        ("metrics=[rate_distortion]",),
        ("metrics=[ode]",),
    ],
)
def test_nothing_is_evaluated_with_weights_that_are_not_finite(compose, checkpoint, tmp_path, options):
    few = ("nll.n_images=4", "rate_distortion.n_images=4", "ode.n_images=4")
    with pytest.raises(ValueError, match=r"values of the .* are not finite numbers"):
        evaluate(compose("evaluate", f"ckpt='{checkpoint}'", f"output_dir='{tmp_path}'", *options, *few))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_solver_that_diverges_writes_nothing(compose, checkpoint, tmp_path):
    options = ("task=inverse", "operator=inpaint", "solver=dps", "solver.scale=1e38", "n=2", "draws=1")
    with pytest.raises(ValueError, match="values of the x are not finite numbers"):
        sample(compose("sample", f"ckpt='{checkpoint}'", f"output_dir='{tmp_path}'", *options))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_samples_before_those_that_diverge_are_no_samples_of_the_model(compose, checkpoint, tmp_path, monkeypatch):
    draw = grid_task.draw

    def diverging(*args):
        for batch in draw(*args):
            yield batch if 0 in batch.index else batch._replace(x=batch.x * torch.inf)

    monkeypatch.setattr(grid_task, "draw", diverging)
    with pytest.raises(ValueError, match="images are not finite"):
        sample(compose("sample", f"ckpt='{checkpoint}'", f"output_dir='{tmp_path}'", "n=4", "batch_size=2"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_metric_that_is_done_is_kept_when_another_fails(compose, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probability_flow, "code_length", lambda log_p, *args: log_p * torch.nan)
    options = ("metrics=[nll,ode]", "nll.n_images=4", "ode.n_images=2", "ode.rtol=1e-2")
    with pytest.raises(ValueError, match="values of the bits are not finite"):
        evaluate(compose("evaluate", f"ckpt='{checkpoint}'", f"output_dir='{tmp_path}'", *options))
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "metrics.json").read_text())
    assert "nll" in found
    assert "ode" not in found
    assert "kept: metrics.json, terms.npz, terms.png in " in capsys.readouterr().out


@pytest.mark.slow
def test_a_pilot_that_is_not_finite_does_not_pass_for_an_even_one(checkpoint, damaged):
    from ddpm import load

    with pytest.raises(ValueError, match="values of the terms are not finite"):
        pilot(load(checkpoint), torch.zeros(1, 1, 8, 8), lambda step: torch.ones(1, 1, 8, 8))


@pytest.mark.slow
def test_training_that_diverges_leaves_no_grid_and_no_results(train, tmp_path):
    options = ("optimizer.lr=1e30", "warmup_steps=0", "callbacks=[samples,bits_per_dim]", "callbacks.samples.n=4")
    options += ("trainer.log_every_n_steps=100",)  # at which training looks for itself
    with pytest.raises(ValueError, match=r"not .*finite"):
        train(tmp_path, *options, "callbacks.samples.every_n_steps=5", "callbacks.bits_per_dim.every_n_steps=5")
    assert not list(tmp_path.rglob("*.png"))
    assert not (tmp_path / "results.json").exists()


def test_results_that_are_not_finite_are_not_written(tmp_path):
    trainer = SimpleNamespace(
        callback_metrics={"train/loss": torch.tensor(torch.nan)}, global_step=3, default_root_dir=str(tmp_path)
    )
    module = SimpleNamespace(results={"bits_per_dim": 3.0}, unreliable={})
    with pytest.raises(ValueError, match="there are no results: train/loss is nan"):
        report.results(trainer, module, {})
    assert not list(tmp_path.iterdir())


def test_json_holds_no_nan_and_names_infinity(tmp_path):
    path = tmp_path / "found.json"
    write_json(path, {"psnr": [float("inf"), 20.0], "least": -float("inf"), "n": 3})
    before = path.read_text()
    assert json.loads(before, parse_constant=pytest.fail) == {"psnr": ["inf", 20.0], "least": "-inf", "n": 3}
    with pytest.raises(ValueError, match=r"found.json was not written, because it would contain NaN"):
        write_json(path, {"rows": [{"fid": float("nan")}]})
    assert path.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["found.json"]


def test_an_infinite_option_is_the_same_before_and_after_it_is_written():
    config = {"loss": {"gamma": float("inf")}, "output_dir": "a"}
    assert comparable(json.loads(as_json(config))) == comparable(config)
