"""Evaluating and sampling a checkpoint: the numbers of training, of torch-fidelity, and of any batch size."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image

import ddpm.generation.draw
from ddpm import load
from ddpm.chain.gaussian import Gaussian
from ddpm.chain.noise import IndexedNoise, Stream
from ddpm.commands.evaluate import evaluate
from ddpm.commands.sample import sample
from ddpm.data.digits import Digits
from ddpm.data.scaling import as_uint8, to_pixels
from ddpm.generation.draw import draw
from ddpm.metrics import dataset_bound
from ddpm.metrics.classifier import train_classifier
from ddpm.parallel.share import Share
from ddpm.sampler.ancestral import Ancestral
from ddpm.setup import build, loading
from ddpm.support.pictures import save_png

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(train, tiny, tmp_path_factory):
    """A tiny run with every callback: its folder and its module."""
    folder = tmp_path_factory.mktemp("run")
    quality = (
        "metrics=[fid,is,kid,prc]",
        "callbacks.quality.batch_size=33",
        "callbacks.bits_per_dim.n_images=30",
    )
    return folder, train(folder, *quality, "seed=3", base=tiny).module


@pytest.fixture(scope="module")
def run_entry(compose, run):
    """(entry point, *overrides) -> what it returns for the run's checkpoint."""

    def of(name, *overrides):
        cfg = compose(name, f"ckpt='{run[0]}/last.ckpt'", *overrides)
        return {"evaluate": evaluate, "sample": sample}[name](cfg)

    return of


@pytest.fixture(scope="module")
def evaluated(run_entry, tmp_path_factory):
    """Every metric of 100 samples, which are saved: the folder and the content of metrics.json."""
    parent = tmp_path_factory.mktemp("evaluated")
    result = run_entry(
        "evaluate", "metrics=[fid,is,kid,prc,nll]", "n_samples=100", "save_samples=true", "nll.n_images=30",
        f"output_dir='{parent}'",
    )  # fmt: skip
    (folder,) = parent.iterdir()
    assert json.loads((folder / "metrics.json").read_text()) == result
    return folder, result


# ---------------------------------------------------------------- evaluate.py


def test_evaluation_reproduces_the_last_numbers_of_the_callbacks(run, evaluated):
    of_training, (_, result) = run[1].results, evaluated
    for name in ("bits_per_dim", "prior", "rate", "distortion", "standard_error"):
        assert result["nll"][name] == pytest.approx(of_training[name], rel=1e-6), name
    quality = ("fid", "fid_error", "fid_floor", "is_mean", "is_std", "kid_mean", "kid_error", "precision", "recall")
    for name in quality:
        assert result["samples"][name] == pytest.approx(of_training[name], rel=1e-6), name


def test_saved_samples_have_the_same_scores_under_torch_fidelity(evaluated, tmp_path):
    folder, result = evaluated
    assert [path.name for path in sorted((folder / "samples").iterdir())] == [f"{i:06d}.png" for i in range(100)]
    source = Digits()
    images = source.load("train")
    for i, image in enumerate(as_uint8(images.pixels(range(len(images))), source.levels)):
        save_png(image, tmp_path / f"{i:06d}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folder / "samples"),
        input2=str(tmp_path),
        feature_extractor="classifier",
        feature_extractor_weights_path=str(train_classifier(images, source.load("test"), 10, source.levels)),
        isc=True, fid=True, kid=True, prc=True,
        kid_subset_size=100,
        cuda=False, cache=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    pairs = {
        "fid": "frechet_inception_distance",
        "is_mean": "inception_score_mean",
        "kid_mean": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for name, key in pairs.items():
        assert result["samples"][name] == pytest.approx(theirs[key], rel=1e-3, abs=1e-9), name


def test_every_number_states_what_defines_it(evaluated):
    result = evaluated[1]
    samples, nll = result["samples"], result["nll"]
    assert (result["step"], result["weights"], result["seed"]) == (6, "ema", 3)
    assert result["data"]["_target_"] == "ddpm.data.digits.Digits"
    assert (samples["n"], samples["fid_floor_n"], samples["reference"], samples["reference_n"]) == (
        100,
        100,
        "train",
        1437,
    )
    assert (samples["features"], samples["features_dim"], samples["resize"]) == ("classifier", 64, "none")
    assert len(samples["features_sha256"]) == 16
    assert 0.9 < samples["features_accuracy"] <= 1
    assert samples["quantisation"] == "rounded to 17 grey levels, then to 0..255"
    assert (samples["sampler"]["_target_"], samples["steps"]) == ("ddpm.sampler.ancestral.Ancestral", 20)
    assert (nll["n"], nll["split"], nll["unit"], nll["levels"], nll["T"]) == (30, "test", "bits/dim", 17, 20)
    assert (nll["estimator"], nll["evaluations"], nll["variance"]) == ("sampled", 10, "fixed_large")
    assert nll["x_0_clipped"] is False


def test_values_of_too_few_images_are_unreliable_in_training_and_in_evaluation(run, evaluated):
    few = [
        "kid_mean",
        "kid_error",
        "kid_std",
        "precision",
        "recall",
    ]  # 100 are enough for FID of 64 features and IS of 10 classes
    samples, trained = evaluated[1]["samples"], json.loads((run[0] / "results.json").read_text())
    assert samples["unreliable"] == list(run[1].unreliable) == few
    assert samples["warnings"] == trained["warnings"]
    kid, prc = trained["warnings"]
    assert kid.startswith("KID is not reliable: 100 samples and 1,437 reference images for subsets of 1,000")
    assert prc.startswith("precision and recall are not reliable: 100 samples")


def test_samples_are_compared_with_the_test_images_too_if_asked_for(run_entry, evaluated, tmp_path, capsys):
    options = ("metrics=[fid]", "n_samples=100", f"output_dir='{tmp_path}'")
    found = run_entry("evaluate", *options, "reference=[train,test]")["samples"]
    assert (found["reference_n"], found["reference_test_n"]) == (1437, 360)
    assert found["fid"] == pytest.approx(evaluated[1]["samples"]["fid"], rel=1e-6)
    assert found["fid_floor"] == pytest.approx(evaluated[1]["samples"]["fid_floor"], rel=1e-6)
    assert abs(found["fid_test"] - found["fid"]) > 1e-3
    assert found["fid_error_test"] > 0
    shown = capsys.readouterr().out
    assert f"{found['fid']:.4g} ± {found['fid_error']:.2g}" in shown
    assert f"{found['fid_test']:.4g} ± {found['fid_error_test']:.2g}" in shown
    with pytest.raises(ValueError, match=r"reference must be \[train\] or \[train,test\], got \['test'\]"):
        run_entry("evaluate", *options, "reference=[test]")


def test_a_second_evaluation_overwrites_nothing_and_repeats_the_numbers(run_entry, tmp_path):
    options = ("metrics=[nll]", "nll.n_images=4", f"output_dir='{tmp_path}'")
    first, second = run_entry("evaluate", *options), run_entry("evaluate", *options)
    assert first == second
    assert len(list(tmp_path.glob("*/metrics.json"))) == 2


def test_an_evaluation_is_written_beside_its_checkpoint(run, run_entry):
    before = {path.name for path in run[0].iterdir()}
    run_entry("evaluate", "metrics=[nll]", "nll.n_images=4")
    (new,) = {path.name for path in run[0].iterdir()} - before
    assert new.startswith("evaluate_")
    assert "=" not in new


def test_options_change_what_they_say_and_are_stated(run_entry, evaluated, tmp_path):
    def nll(*options):
        return run_entry("evaluate", "metrics=[nll]", "nll.n_images=30", f"output_dir='{tmp_path}'", *options)

    base = evaluated[1]["nll"]["bits_per_dim"]
    raw, train = nll("weights=raw"), nll("split=train")
    clipped, seed, batch = nll("nll.clip=true"), nll("seed=4"), nll("batch_size=7")
    assert (raw["weights"], train["nll"]["split"], clipped["nll"]["x_0_clipped"], seed["seed"]) == (
        "raw",
        "train",
        True,
        4,
    )
    for other in (raw, train, clipped, seed):
        assert abs(other["nll"]["bits_per_dim"] - base) > 1e-5
    assert batch["nll"]["bits_per_dim"] == pytest.approx(base, rel=1e-6)


def test_the_bound_is_clipped_as_in_the_training_run_unless_it_is_said_otherwise(train, compose, tmp_path):
    train(tmp_path, "+callbacks.bits_per_dim.clip=true", "trainer.max_steps=1")

    def nll(*options):
        asked = ("metrics=[nll]", "nll.n_images=4", "nll.estimator=full", *options)
        return evaluate(compose("evaluate", f"ckpt='{tmp_path}/last.ckpt'", *asked))["nll"]

    default, clipped, free = nll(), nll("nll.clip=true"), nll("nll.clip=false")
    assert default == clipped
    assert (clipped["x_0_clipped"], free["x_0_clipped"]) == (True, False)
    assert clipped["bits_per_dim"] < free["bits_per_dim"]
    assert nll("nll.clip=published") == clipped | {"x_0_clipped": "published"}
    with pytest.raises(ValueError, match=r"nll.clip must be true, false, published, or a quantile .* got 'maybe'"):
        nll("nll.clip=maybe")


def test_fewer_steps_are_another_sampler_and_are_stated(run_entry, evaluated, tmp_path):
    options = ("metrics=[fid]", "n_samples=100", f"output_dir='{tmp_path}'")
    short = run_entry("evaluate", *options, "sampler=ancestral", "sampler.steps=5")["samples"]
    assert (short["steps"], short["sampler"]["steps"]) == (5, 5)
    assert abs(short["fid"] - evaluated[1]["samples"]["fid"]) > 1e-3
    assert not list(tmp_path.glob("*/samples"))


def test_as_many_samples_as_in_training_and_all_images_unless_said_otherwise(run_entry, tmp_path):
    options = ("metrics=[is,nll]", f"output_dir='{tmp_path}'", "sampler=ancestral", "sampler.steps=1")
    result = run_entry("evaluate", *options)
    assert (result["samples"]["n"], result["nll"]["n"]) == (100, 360)
    result = run_entry("evaluate", *options, "n_samples=20", "nll.n_images=5")
    assert (result["samples"]["n"], result["nll"]["n"]) == (20, 5)


# ---------------------------------------------------------------- likelihood


def likelihood(run_entry, parent, *options):
    """The result of a likelihood of 30 images, and its folder."""
    known = set(parent.iterdir())
    result = run_entry("evaluate", "nll.n_images=30", f"output_dir='{parent}'", *options)
    (folder,) = set(parent.iterdir()) - known
    return result, folder


def test_full_and_sampled_bounds_agree_within_their_error(run_entry, tmp_path):
    full, folder = likelihood(run_entry, tmp_path, "metrics=[nll]", "nll.estimator=full")
    full = full["nll"]
    assert (full["estimator"], full["evaluations"], full["standard_error_times"]) == ("full", 20, 0)
    terms = np.load(folder / "terms.npz")
    assert terms["terms"].shape == terms["squared_errors"].shape == (30, 20)
    assert terms["terms"].sum(1).mean() + terms["prior"].mean() == pytest.approx(full["bits_per_dim"])
    assert terms["terms"][:, 1:].sum(1).mean() + terms["prior"].mean() == pytest.approx(full["rate"])

    sampled, folder = likelihood(run_entry, tmp_path, "metrics=[nll]", "nll.evaluations=6")
    sampled = sampled["nll"]
    assert sampled["standard_error_times"] > 0
    assert abs(sampled["bits_per_dim"] - full["bits_per_dim"]) < 4 * sampled["standard_error_times"]
    assert sampled["distortion"] == pytest.approx(full["distortion"], rel=1e-6)
    arrays = np.load(folder / "terms.npz")
    assert arrays["times"].shape == arrays["terms"].shape == (30, 6)
    assert np.allclose(arrays["terms"][:, 0], terms["terms"][:, 0], rtol=1e-5)
    weighted = arrays["terms"] / arrays["inclusion"][arrays["times"]]
    assert weighted.sum(1).mean() + arrays["prior"].mean() == pytest.approx(sampled["bits_per_dim"])
    # What is drawn at a time is the term of the full bound: they share their noise.
    same = np.take_along_axis(terms["terms"], arrays["times"] - 1, 1)
    assert np.allclose(arrays["terms"], same, rtol=1e-4)

    every, _ = likelihood(run_entry, tmp_path, "metrics=[nll]", "nll.evaluations=20")
    assert every["nll"]["bits_per_dim"] == pytest.approx(full["bits_per_dim"], rel=1e-6)
    assert every["nll"]["standard_error_times"] == 0


def test_the_result_says_where_the_bits_go(evaluated):
    nll = evaluated[1]["nll"]
    share = nll["rate"] / nll["bits_per_dim"]
    assert f"{nll['rate']:.2f} ({share:.0%}) are rate" in nll["division"]
    assert f"RMSE of {nll['rmse']:.2f}" in nll["division"]


def test_bits_per_dim_of_any_batch_size_and_number_of_processes_are_the_same(run, monkeypatch):
    seen = {}

    class Spy(IndexedNoise):
        def __call__(self, step):
            noise = super().__call__(step)
            steps = [step] * len(noise) if isinstance(step, int) else step.tolist()
            for row, index, t in zip(noise, self.indices, steps, strict=True):
                seen.setdefault((index, t), []).append(row)
            return noise

    monkeypatch.setattr(dataset_bound, "IndexedNoise", Spy)
    model, images = load(run[0] / "last.ckpt"), Digits().load("test")
    results = {size: dataset_bound.sampled(model, images, 64, 3, size, 6) for size in (1, 7, 64)}
    for result in results.values():
        assert torch.equal(result.times, results[64].times)
        assert result.total.mean().item() == pytest.approx(results[64].total.mean().item(), rel=1e-6)
    assert all(torch.equal(row, rows[0]) for rows in seen.values() for row in rows)
    halves = [dataset_bound.sampled(model, images, 64, 3, 16, 6, share=Share(rank, 2)) for rank in (0, 1)]
    for rank, half in enumerate(halves):
        assert torch.equal(half.times, results[64].times[rank::2])
        assert torch.allclose(half.total, results[64].total[rank::2], rtol=1e-5)


def test_a_respaced_chain_has_its_own_bound(run_entry, evaluated, tmp_path):
    short, _ = likelihood(run_entry, tmp_path, "metrics=[nll]", "nll.steps=5")
    assert (short["nll"]["T"], short["nll"]["evaluations"]) == (5, 5)
    assert short["nll"]["prior"] == pytest.approx(evaluated[1]["nll"]["prior"], rel=1e-6)
    assert abs(short["nll"]["bits_per_dim"] - evaluated[1]["nll"]["bits_per_dim"]) > 1e-3


def is_picture(path):
    pixels = np.asarray(Image.open(path).convert("L"))
    return min(pixels.shape) > 100 and pixels.std() > 5


def test_rate_distortion_is_written_as_table_and_pictures(run_entry, tmp_path):
    result, folder = likelihood(run_entry, tmp_path, "metrics=[rate_distortion,nll]", "rate_distortion.n_images=30",
                                "nll.estimator=full")  # fmt: skip
    found, nll = result["rate_distortion"], result["nll"]
    with (folder / "rate_distortion.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["steps"] for row in rows] == list(range(1, 21))
    assert [row["t"] for row in rows] == list(range(20, 0, -1))
    assert [row["steps"] for row in found["table"]] == list(range(20, 0, -2))
    assert found["table"][0] == rows[-1]
    assert rows[0]["rate"] == pytest.approx(nll["prior"])
    assert rows[-1]["rate"] == pytest.approx(nll["rate"])
    assert rows[-1]["rmse"] == pytest.approx(nll["rmse"])
    assert rows[0]["rmse"] > 5 * rows[-1]["rmse"]
    assert (found["n"], found["T"], found["x_0_clipped"]) == (30, 20, False)
    names = ("rate_distortion.png", "predictions.png", "sharing.png", "terms.png")
    assert all(is_picture(folder / name) for name in names)


def test_the_likelihood_of_the_flow_is_stated_with_its_cost(run_entry, tmp_path):
    def ode(*options):
        return likelihood(run_entry, tmp_path, "metrics=[ode]", "ode.n_images=4", "ode.rtol=1e-3", *options)[0]["ode"]

    found = ode()
    assert (found["n"], found["divergence"], found["solver"]) == (4, "hutchinson", "scipy RK45, rtol 0.001, atol 1e-05")
    assert found["evaluations"] > 20
    assert found["dequantisation"].startswith("uniform")
    exact, batched = ode("ode.divergence=exact"), ode("batch_size=2")
    assert exact["bits_per_dim"] == pytest.approx(found["bits_per_dim"], abs=0.5)
    assert exact["bits_per_dim"] != found["bits_per_dim"]
    assert batched["bits_per_dim"] == pytest.approx(found["bits_per_dim"], abs=1e-2)


# ---------------------------------------------------------------- sample.py


def pixels(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "images").iterdir())])


@pytest.fixture(scope="module")
def drawn(run_entry, tmp_path_factory):
    return run_entry("sample", "n=9", f"output_dir='{tmp_path_factory.mktemp('drawn')}'")


def test_sampling_writes_n_images_and_a_grid(drawn):
    assert {path.name for path in drawn.iterdir()} == {"images", "grid.png", "sample.json"}
    assert pixels(drawn).shape == (9, 8, 8)
    assert min(Image.open(drawn / "grid.png").size) > 3 * 8
    assert {round(level * 255 / 16) for level in range(17)} >= set(pixels(drawn).flatten().tolist())


def test_every_result_says_what_made_it(run, drawn, evaluated):
    sha256 = hashlib.sha256((run[0] / "last.ckpt").read_bytes()).hexdigest()
    found = json.loads((drawn / "sample.json").read_text())
    assert (found["checkpoint"], found["sha256"]) == (str(run[0] / "last.ckpt"), sha256)
    assert (found["step"], found["weights"], found["seed"], found["labels"]) == (6, "ema", 3, None)
    assert (found["task"], found["n"], found["sampler"]["_target_"]) == (
        "grid",
        9,
        "ddpm.sampler.ancestral.Ancestral",
    )
    for path in (drawn / "grid.png", drawn / "images" / "000000.png"):
        text = json.loads(Image.open(path).text["ddpm"])
        assert text["checkpoint"] == "last.ckpt"
        assert {key: text[key] for key in text if key != "checkpoint"}.items() <= found.items()
        assert {"sha256", "sampler", "seed", "labels"} <= text.keys()
    assert (evaluated[1]["checkpoint"], evaluated[1]["sha256"]) == (str(run[0] / "last.ckpt"), sha256)


def test_npz_holds_the_same_images(drawn, run_entry, tmp_path):
    folder = run_entry("sample", "n=9", "format=npz", f"output_dir='{tmp_path}'")
    assert {path.name for path in folder.iterdir()} == {"samples.npz", "grid.png", "sample.json"}
    samples = np.load(folder / "samples.npz")["samples"]
    assert samples.dtype == np.uint8
    assert samples.shape == (9, 8, 8, 1)
    assert np.array_equal(samples[..., 0], pixels(drawn))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_samples_do_not_depend_on_the_batch_size(drawn, run_entry, tmp_path, batch_size):
    folder = run_entry("sample", "n=9", f"batch_size={batch_size}", f"output_dir='{tmp_path}'")
    level = 255 / 16
    assert np.abs(pixels(folder).astype(int) - pixels(drawn)).max() <= round(level) + 1


SAMPLERS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "sampler").glob("*.yaml"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_the_same_images_in_any_batch_and_can_be_evaluated(run, run_entry, compose, tmp_path, name):
    model = load(run[0] / "last.ckpt")
    node = compose("sample", "ckpt=none", f"sampler={name}", "sampler.steps=8").sampler
    sampler = build.sampler(node, model.process)

    def levels(batch_size):
        parts = draw(model, sampler, (1, 8, 8), range(16), 3, batch_size)
        return torch.cat([to_pixels(part.x, 17).int() for part in parts])

    together = levels(16)
    for batch_size in (1, 8):
        assert (levels(batch_size) - together).abs().max() <= 1
    options = (f"sampler={name}", "sampler.steps=4", "metrics=[fid]", "n_samples=16", f"output_dir='{tmp_path}'")
    found = run_entry("evaluate", *options)["samples"]
    assert (found["steps"], found["n"]) == (4, 16)
    assert found["sampler"]["_target_"].startswith(f"ddpm.sampler.{name}.")
    assert found["fid"] > 0


def test_the_noise_of_a_sample_is_the_same_in_any_batch(run, monkeypatch):
    seen = {}

    class Spy(IndexedNoise):
        def __call__(self, step):
            noise = super().__call__(step)
            for row, index in zip(noise, self.indices, strict=True):
                seen.setdefault((index, step), []).append(row)
            return noise

    monkeypatch.setattr(ddpm.generation.draw, "IndexedNoise", Spy)
    model = load(run[0] / "last.ckpt")
    for batch_size in (1, 4, 9):
        list(draw(model, Ancestral(), (1, 8, 8), range(9), 3, batch_size))
    assert len(seen) == 9 * 20
    assert all(
        len(rows) == 3 and torch.equal(rows[0], rows[1]) and torch.equal(rows[0], rows[2]) for rows in seen.values()
    )
    assert len({tuple(rows[0].flatten().tolist()) for rows in seen.values()}) == 9 * 20


def test_samples_are_a_prefix_of_more_samples(drawn, run_entry, tmp_path):
    folder = run_entry("sample", "n=4", f"output_dir='{tmp_path}'")
    assert np.abs(pixels(folder).astype(int) - pixels(drawn)[:4]).max() <= 17


def test_saved_samples_of_an_evaluation_are_those_of_sampling(drawn, evaluated):
    first = np.stack([np.asarray(Image.open(evaluated[0] / "samples" / f"{i:06d}.png")) for i in range(9)])
    assert np.abs(first.astype(int) - pixels(drawn)).max() <= 17


def test_raw_weights_another_seed_and_fewer_steps_draw_other_images(drawn, run_entry, tmp_path):
    for option in ("weights=raw", "seed=4", "sampler=ancestral sampler.steps=5"):
        folder = run_entry("sample", "n=9", f"output_dir='{tmp_path}'", *option.split())
        assert not np.array_equal(pixels(folder), pixels(drawn)), option


# ---------------------------------------------------------------- in Python


def test_a_checkpoint_alone_rebuilds_the_model(run):
    folder, module = run
    for name, network in (("ema", module.ema.network), ("raw", module.diffusion.network)):
        loaded, network = load(folder / "last.ckpt", name), network.eval()
        assert not loaded.training
        x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 20])
        with torch.no_grad():
            assert torch.equal(loaded.predict(x_t, t).y, network(x_t, t - 1))
    a, b = load(folder / "last.ckpt"), load(folder / "last.ckpt", "raw")
    assert not torch.equal(a.network.conv_out.weight, b.network.conv_out.weight)


def test_a_loaded_model_predicts_and_samples_in_a_few_lines(run):
    model = load(str(run[0] / "last.ckpt"))
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 20])
    prediction, p = model.predict(x_t, t, clip=True), model.p(x_t, t)
    assert prediction.x_0.abs().max() <= 1
    assert prediction.eps.shape == x_t.shape
    assert isinstance(p, Gaussian)
    noise = IndexedNoise(0, Stream.SAMPLES, range(2), (1, 8, 8))
    assert Ancestral(steps=5).sample(model, noise).shape == x_t.shape


def test_a_checkpoint_holds_nothing_that_runs(run):
    content = loading.read(run[0] / "last.ckpt")
    assert not any(parameter.requires_grad for parameter in loading.model(content).parameters())
