"""Conditional models from training to the sweep over guidance."""

import csv
import json

import numpy as np
import pytest
import torch

from ddpm import load
from ddpm.commands.evaluate import evaluate
from ddpm.commands.sample import sample
from ddpm.data.digits import Digits
from ddpm.lit.experiment import experiment
from ddpm.metrics import dataset_bound
from ddpm.metrics.by_class import accuracy, fid_by_class
from ddpm.setup import loading as checkpoints
from ddpm.support.pictures import grid, in_rows

pytestmark = pytest.mark.slow
CONDITIONAL = ("conditioning=class", "seed=2", "optimizer.lr=1e-2")


@pytest.fixture(scope="module")
def checkpoint(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(folder, *CONDITIONAL, "trainer.max_steps=40")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def do(compose, checkpoint, tmp_path_factory):
    """(entry point, *overrides) -> the folder that it leaves."""

    def done(name, *overrides):
        parent = tmp_path_factory.mktemp("out")
        cfg = compose(name, f"ckpt='{checkpoint}'", f"output_dir='{parent}'", *overrides)
        (sample if name == "sample" else evaluate)(cfg)
        return next(parent.iterdir())

    return done


def result(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_labels_are_sampled_in_turn_whatever_the_batch(do):
    whole, parts = (
        np.load(do("sample", "labels=[0,3]", "guidance=2", "n=5", "format=npz", f"batch_size={size}") / "samples.npz")
        for size in (64, 2)
    )
    assert whole["labels"].tolist() == [0, 3, 0, 3, 0]
    assert np.array_equal(whole["samples"], parts["samples"])
    other = np.load(do("sample", "labels=[1,3]", "guidance=2", "n=5", "format=npz") / "samples.npz")["samples"]
    same = [np.array_equal(a, b) for a, b in zip(whole["samples"], other, strict=True)]
    assert same == [False, True, False, True, False]


def test_without_labels_every_class_has_a_row(do):
    folder = do("sample", "n=20", "format=npz")
    assert np.load(folder / "samples.npz")["labels"].tolist() == [*range(10)] * 2


def test_guidance_changes_samples_and_its_interval_says_where(do):
    def drawn(*options):
        return np.load(do("sample", "n=4", "format=npz", *options) / "samples.npz")["samples"]

    plain, guided, nowhere = drawn(), drawn("guidance=2"), drawn("guidance=2", "guidance_interval=[21,30]")
    assert not np.array_equal(plain, guided)
    assert np.array_equal(plain, nowhere)
    assert not np.array_equal(guided, drawn("guidance=2", "guidance_interval=[5,15]"))


def test_scores_of_the_classes_stand_beside_fid(do):
    found = result(do("evaluate", "metrics=[fid]", "n_samples=100", "guidance=1"))["samples"]
    assert found["guidance"] == 1
    assert 0 <= found["accuracy"] <= 1
    assert sorted(found["fid_by_class"], key=int) == [str(label) for label in range(10)]
    assert found["fid_class_mean"] == pytest.approx(np.mean([*found["fid_by_class"].values()]))


def test_the_sweep_has_the_numbers_of_single_evaluations(do):
    folder = do("evaluate", "metrics=[guidance]", "n_samples=100", "guidance_scales=[0,1]")
    assert {path.name for path in folder.iterdir()} == {"guidance.csv", "guidance.png", "metrics.json"}
    table = result(folder)["guidance"]["table"]
    single = result(do("evaluate", "metrics=[fid]", "n_samples=100", "guidance=1"))["samples"]
    assert [row["guidance"] for row in table] == [0, 1]
    assert {name: table[1][name] for name in ("fid", "fid_class_mean", "accuracy")} == pytest.approx(
        {name: single[name] for name in ("fid", "fid_class_mean", "accuracy")}
    )
    few = "within a class, FID is not reliable: 9 samples and "
    for found in (result(folder)["guidance"], single):  # 64 samples are enough for FID over all classes
        assert found["unreliable"] == ["fid_class_mean"]
        assert [warning.startswith(few) for warning in found["warnings"]] == [True]
    with (folder / "guidance.csv").open() as file:
        assert [float(row["fid"]) for row in csv.DictReader(file)] == [row["fid"] for row in table]


def test_bits_per_dim_are_those_given_the_class(do, checkpoint):
    found = result(do("evaluate", "metrics=[nll,ode]", "nll.n_images=20", "nll.evaluations=20", "ode.n_images=2"))
    assert found["nll"]["given"] == found["ode"]["given"] == "its class"
    model, images = load(checkpoint), Digits().load("test")
    seed = checkpoints.read(checkpoint)["ddpm_config"]["seed"]

    def total():
        code = dataset_bound.full(model, images, 20, seed, 64)
        return float(code.total.mean()) / (64 * np.log(2))

    assert found["nll"]["bits_per_dim"] == pytest.approx(total(), abs=1e-5)
    images.labels = (images.labels + 1) % 10
    assert abs(total() - found["nll"]["bits_per_dim"]) > 1e-4


def embeddings(train, folder, *options):
    done = train(folder, *CONDITIONAL, *options)
    return done.module.diffusion.network.label.weight.detach()


def test_what_is_left_out_trains_the_unconditional_model(compose, tiny, train, tmp_path):
    out = f"output_dir={json.dumps(str(tmp_path / 'new'))}"
    start = experiment(compose("train", *tiny, out, *CONDITIONAL)).module.diffusion.network.label.weight
    always = embeddings(train, tmp_path / "always", "conditioning.dropout=1.0")
    assert torch.equal(always[:10], start[:10])
    assert not torch.equal(always[10], start[10])
    never = embeddings(train, tmp_path / "never", "conditioning.dropout=0.0")
    assert torch.equal(never[10], start[10])
    assert (never[:10] != start[:10]).any(1).all()


def test_accuracy_counts_the_samples_of_the_class_asked_for():
    logits = torch.eye(4)[torch.tensor([0, 1, 2, 2])]
    assert accuracy({"logits": logits}, torch.tensor([0, 1, 2, 3])) == 0.75


def test_fid_by_class_compares_each_class_with_itself():
    features = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(400) % 2
    features[labels == 1] += 5
    parts = {"features": features, "logits": features}
    found = fid_by_class(parts, labels, parts, labels)
    assert found == pytest.approx({0: 0, 1: 0}, abs=1e-3)
    swapped = fid_by_class(parts, 1 - labels, parts, labels)
    assert min(swapped.values()) > 50


def test_rows_hold_the_images_of_one_class_and_end_in_white():
    images = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 4, 4)
    assert torch.equal(in_rows(images, 2), grid(torch.cat([images[[0, 2, 4, 1, 3]], images[:1] * 0 + 255]), 3))
