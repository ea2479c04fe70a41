"""Sample quality: equality with torch-fidelity, invariance to gathering, the feature networks."""

import io
import math
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3 as tf_inception

from ddpm.chain.process import Process
from ddpm.commands import evaluate as evaluation
from ddpm.commands.sample_metrics import SampleMetrics
from ddpm.data.digits import Digits
from ddpm.data.images import InMemory
from ddpm.metrics import classifier as classifier_module
from ddpm.metrics import dataset_bound
from ddpm.metrics import inception as inception_module
from ddpm.metrics import judge as judge_module
from ddpm.metrics.base import Sizes
from ddpm.metrics.classifier import Classifier, train_classifier
from ddpm.metrics.feature_network import FeatureNetwork, feature_network
from ddpm.metrics.features import real_features
from ddpm.metrics.fid import FID
from ddpm.metrics.inception import Folded, inception
from ddpm.metrics.is_ import InceptionScore
from ddpm.metrics.judge import Judge
from ddpm.metrics.kid import KID
from ddpm.metrics.prc import PrecisionRecall
from ddpm.metrics.scores import rows, scores, unreliable
from ddpm.metrics.weights import weights_digest
from ddpm.model.diffusion import Diffusion
from ddpm.network.unet import UNet
from ddpm.parallel.gathered import Gathered
from ddpm.parallel.share import ALONE
from ddpm.parameterization.eps import Eps
from ddpm.schedule.linear import Linear
from ddpm.variance.fixed_small import FixedSmall

ALL = {"fid": FID(), "is": InceptionScore(), "kid": KID(), "prc": PrecisionRecall()}


def one(name):
    return {name: ALL[name]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Every test has its own cache of classifiers."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def blobs(n, seed, channels=1, size=8, classes=3, levels=256):
    """Noise whose brightness tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    noise = torch.rand(n, channels, size, size, generator=generator)
    pixels = ((noise + labels.view(-1, 1, 1, 1)) / classes * (levels - 1)).round().byte()
    return InMemory(pixels, labels)


@pytest.fixture
def quick(monkeypatch):
    """A classifier trained for an instant; its accuracy does not matter."""
    monkeypatch.setitem(classifier_module.RECIPE, "examples", 256)


def network_of(channels=1, size=8):
    train, test = blobs(64, 0, channels, size), blobs(16, 1, channels, size)
    return feature_network("classifier", train, test, 3)


def export(folder: Path, images: InMemory) -> str:
    folder.mkdir()
    for i, image in enumerate(images.pixels(range(len(images))).numpy()):
        picture = Image.fromarray(image[0]) if len(image) == 1 else Image.fromarray(image.transpose(1, 2, 0))
        picture.save(folder / f"{i:06d}.png")
    return str(folder)


def assert_equals_torch_fidelity(tmp_path, network, fake, real, **kwargs):
    samples = real_features(fake, network, 256, batch_size=7)
    ours = scores(ALL, samples, real_features(real, network, 256, batch_size=9))
    theirs = torch_fidelity.calculate_metrics(
        input1=export(tmp_path / "fake", fake),
        input2=export(tmp_path / "real", real),
        isc=True, fid=True, kid=True, prc=True,
        kid_subset_size=min(len(fake), len(real)),
        cuda=False, cache=False, verbose=False, save_cpu_ram=True,
        **kwargs,
    )  # fmt: skip
    pairs = {
        "fid": "frechet_inception_distance",
        "is_mean": "inception_score_mean",
        "is_std": "inception_score_std",
        "kid_mean": "kernel_inception_distance_mean",
        "kid_std": "kernel_inception_distance_std",
        "precision": "precision",
        "recall": "recall",
    }
    for name, key in pairs.items():
        assert ours[name] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), name
    assert ours["fid"] > 1e-3
    assert ours["is_mean"] > 1 + 1e-4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.usefixtures("quick")
def test_classifier_metrics_equal_torch_fidelity_on_exported_pngs(tmp_path, cache, channels):
    network = network_of(channels, 32)
    (path,) = cache.glob("classifier-*.pt")
    fake, real = blobs(32, 2, channels, 32), blobs(28, 3, channels, 32, classes=2)
    assert_equals_torch_fidelity(
        tmp_path, network, fake, real,
        feature_extractor="classifier", feature_extractor_weights_path=str(path),
    )  # fmt: skip


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in torch-fidelity's format, scaled so that features spread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf_inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(tf_inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            extractor = tf_inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
            for module in extractor.modules():
                if isinstance(module, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(extractor.state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_metrics_equal_torch_fidelity_on_exported_pngs(tmp_path, inception_file):
    state = torch.get_rng_state()
    network = feature_network("inception", inception_weights=inception_file)
    assert torch.equal(torch.get_rng_state(), state)
    assert (network.dim, network.resize) == (2048, "299x299, bilinear as in TensorFlow 1")
    assert_equals_torch_fidelity(
        tmp_path, network, blobs(12, 2, 1, 32), blobs(11, 3, 1, 32, classes=2),
        feature_extractor="inception-v3-compat", feature_layer_prc="2048",
        feature_extractor_weights_path=str(inception_file),
    )  # fmt: skip


@pytest.mark.slow
def test_folded_inception_has_the_features_of_torch_fidelity(inception_file):
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = inception(inception_file).eval()
    with torch.no_grad():
        # random normalisations, which folding must not lose
        for module in plain.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        features, logits = (each.clone() for each in plain(images))
        other = Folded(plain)(images)
    for mine, theirs in zip(other, (features, logits), strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


def random_features(n, seed=0, dim=8, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "features": torch.randn(n, dim, generator=generator) + shift,
        "logits": torch.randn(n, 3, generator=generator),
    }


def gathered(features, batches, **kwargs):
    metric = Gathered(("features", "logits"), **kwargs)
    for index in batches:
        metric.update({key: value[index] for key, value in features.items()}, index)
    return metric


def test_gathering_ignores_order_batches_and_duplicates():
    features = random_features(20)
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([shuffled, shuffled[:5]])
    for batches in ([torch.arange(20)], shuffled.split(3), padded.split(4)):
        result = gathered(features, batches).compute()
        assert torch.equal(result["features"], features["features"])
        assert torch.equal(result["logits"], features["logits"])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_gathering_one_number_of_one_image_keeps_its_shape(shape):
    metric = Gathered(("x",))
    metric.update({"x": torch.full((1, *shape), 2.0)}, torch.tensor([0]))
    assert metric.compute()["x"].shape == (1, *shape)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("estimate", [dataset_bound.full, partial(dataset_bound.sampled, evaluations=3)])
def test_the_bound_of_one_step_and_one_image_has_a_summary(n, estimate):
    process = Process(Linear(1).beta())
    network = UNet(8, 1, 1, width=4, multipliers=(1,), attention=(), groups=1)
    model = Diffusion(network, process, Eps(), FixedSmall()).eval()
    bound = estimate(model, blobs(2, 0), n, seed=0, batch_size=2)
    assert math.isfinite(bound.summary()["bits_per_dim"])
    assert len(bound.total) == n


def test_two_ranks_report_the_same_metrics_as_one():
    features, index = random_features(21), torch.arange(21)
    second = gathered(features, [*index[1::2].split(4), index[:1]])  # ends with a sampler's padding
    states = iter(("features", "logits", "index"))  # in the order in which they are synchronised
    first = gathered(
        features,
        index[0::2].split(3),
        distributed_available_fn=lambda: True,
        dist_sync_fn=lambda local, group: [local, torch.cat(getattr(second, next(states)))],
    )
    reference = random_features(30, 1)
    alone = gathered(features, [index]).compute()
    assert scores(ALL, first.compute(), reference) == scores(ALL, alone, reference)


def test_gathering_refuses_samples_without_indices():
    with pytest.raises(ValueError, match="got 4 values of features for 3 indices; give one value per index"):
        Gathered(("features", "logits")).update(random_features(4), torch.arange(3))


def test_fid_of_a_set_against_itself_is_zero():
    features = random_features(50)
    result = scores(ALL, features, features)
    assert abs(result["fid"]) < 1e-6
    assert (result["precision"], result["recall"]) == (1, 1)


def test_fid_is_computed_in_float64():
    # variance 1e-6 on a mean of 1000: float32 moments would lose it
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-8, 9, (500, 2), generator=generator)
    fake, real = (1000 + steps * k * 2.0**-13 for k in (1, 3))  # exact in float32
    variance = np.cov((steps * 2.0**-13).double().numpy(), rowvar=False)
    shift = ((steps * 2 * 2.0**-13).double().mean(0) ** 2).sum()
    expected = float(shift + np.trace(variance) * (3 - 1) ** 2)
    fid = scores(one("fid"), {"features": fake}, {"features": real})["fid"]
    assert fid == pytest.approx(expected, rel=1e-6)


def test_fid_below_the_feature_dimension_warns():
    assert FID().caution(Sizes(9, 8, 8)) is None
    warning = FID().caution(Sizes(7, 9, 8))
    assert warning.startswith("FID is not reliable: 7 samples and 9 reference images for 8 features")


@pytest.mark.parametrize(
    ("metric", "enough", "values", "reason"),
    [
        (
            "fid",
            64,
            ["fid", "fid_error"],
            "FID is not reliable: 63 samples and 63 reference images for 64 features; take at least 64",
        ),
        (
            "is",
            30,
            ["is_mean", "is_std"],
            "IS is not reliable: 29 samples in 10 splits for 3 classes; take at least 30",
        ),
        (
            "kid",
            1001,
            ["kid_mean", "kid_error", "kid_std"],
            "KID is not reliable: 1,000 samples and 1,000 reference images for subsets",
        ),
        ("prc", 300, ["precision", "recall"], "precision and recall are not reliable: 299 samples and 299 reference"),
    ],
)
def test_every_metric_of_too_few_images_is_said_to_be_unreliable(metric, enough, values, reason):
    metrics = [ALL[metric]]
    assert unreliable(metrics, Sizes(enough, enough, 64, 3)) == {}
    found = unreliable(metrics, Sizes(enough - 1, enough - 1, 64, 3))
    assert list(found) == values
    assert all(sentence.startswith(reason) for sentence in found.values())
    one_sided = unreliable(metrics, Sizes(10_000, enough - 1, 64, 3))
    assert list(one_sided) == ([] if metric == "is" else values)  # which has no reference


def test_inception_score_of_ten_images_is_marked_and_not_shown_as_a_result(capsys):
    found = scores(one("is"), random_features(10))
    assert (found["is_mean"], found["is_std"]) == (pytest.approx(1), pytest.approx(0))
    cautions = unreliable(one("is").values(), Sizes(10, 0, 8, 8))
    assert [*cautions] == ["is_mean", "is_std"]
    (warning,) = set(cautions.values())
    part = SampleMetrics(one("is"))
    part.rows = rows(one("is").values())
    result = {"n": 10, "features": "classifier", "unreliable": [*cautions], "warnings": [warning]}
    of = {"checkpoint": "last.ckpt", "step": 1, "weights": "ema"}
    evaluation._show(of | {"samples": found | result}, {"samples": part})
    shown = capsys.readouterr().out
    assert re.search(r"│ 1 ± \S+, unreliable", shown)
    assert f"warning: {warning}" in shown


@pytest.mark.usefixtures("quick")
def test_against_test_images_are_the_values_of_test_images_as_the_reference(monkeypatch):
    network, (first, second) = network_of(), (blobs(40, seed) for seed in (5, 6))
    monkeypatch.setattr(judge_module, "shared_network", lambda *args: network)

    def judge(train, test, **options):
        return Judge(ALL, train, test, 3, 256, 20, ALONE, torch.device("cpu"), "classifier", **options)

    samples = real_features(blobs(20, 7), network, 256)
    alone = judge(second, first).scores(samples)
    of_both = judge(first, second, against_test=True)
    found = of_both.scores(samples)
    assert {name.removesuffix("_test") for name in found} == {*found} - {name for name in found if "_test" in name}
    comparing = {name for name in alone if not name.startswith("is_")}
    assert {name for name in found if name.endswith("_test")} == {f"{name}_test" for name in comparing}
    assert {name: found[f"{name}_test"] for name in comparing} == {name: alone[name] for name in comparing}
    assert found["fid"] != found["fid_test"]
    assert of_both.floor == judge(first, second).floor
    assert {row.value for row in of_both.rows} >= {"fid_test", "kid_mean_test", "recall_test"}
    assert "fid_error_test" in {row.spread for row in of_both.rows}
    assert {"fid_test", "fid_error_test"} <= {*of_both.unreliable}


def test_kid_subsets_shrink_to_the_smaller_set_and_say_so():
    fake, real = random_features(30), random_features(20, 1)
    assert KID()(fake, real)["kid_subset_size"] == 20
    assert KID(subset_size=5)(fake, real)["kid_subset_size"] == 5


def test_only_what_is_asked_for_is_reported():
    fake, real = random_features(12), random_features(12, 1)
    assert set(scores(one("is"), fake)) == {"is_mean", "is_std"}
    assert set(scores(one("prc"), fake, real)) == {"precision", "recall"}


def test_precision_and_recall_do_not_depend_on_the_memory_they_use(monkeypatch):
    fake, real = random_features(40), random_features(30, 1, shift=0.7)
    whole = scores(one("prc"), fake, real)
    monkeypatch.setitem(torch_fidelity.defaults.DEFAULTS, "prc_batch_size", 16)
    assert scores(one("prc"), fake, real) == whole


@pytest.mark.parametrize(
    ("n", "metric", "message"),
    [
        (1, "fid", "fid needs at least 2 images, got 1; take more, or leave out fid"),
        (9, "is", "is needs at least 10 images, got 9"),
        (1, "kid", "kid needs at least 2 images, got 1"),
        (3, "prc", "prc needs at least 4 images, got 3"),
    ],
)
def test_metrics_that_cannot_be_computed_say_why(n, metric, message):
    with pytest.raises(ValueError, match=message):
        scores(one(metric), random_features(n), random_features(20, 1))


def test_metrics_refuse_what_they_cannot_compare():
    good, broken = random_features(12), random_features(12)
    broken["features"][3, 2] = math.nan
    with pytest.raises(ValueError, match="features of the samples hold NaN or infinity"):
        scores(one("fid"), broken, good)
    with pytest.raises(ValueError, match="features of the reference images hold NaN or infinity"):
        scores(one("fid"), good, broken)
    with pytest.raises(ValueError, match="samples have 8 features, the reference 4; use one feature network"):
        scores(one("fid"), good, random_features(12, dim=4))
    with pytest.raises(ValueError, match="fid, kid, prc compare with real images; give them"):
        scores(ALL, good)


@pytest.mark.slow
def test_classifier_learns_the_digits():
    train, test = Digits().load("train"), Digits().load("test")
    network = feature_network("classifier", train, test, 10, 17)
    assert network.accuracy >= 0.95
    logits = real_features(test, network, 17)["logits"]
    assert network.accuracy == pytest.approx(float((logits.argmax(1) == test.labels).float().mean()))


def test_classifier_states_its_accuracy_on_the_test_images(monkeypatch):
    monkeypatch.setitem(classifier_module.RECIPE, "examples", 1)
    train, test = (InMemory(x.pixels(range(len(x))) // 2 + 60, x.labels) for x in (blobs(96, 0), blobs(50, 1)))
    network = feature_network("classifier", train, test, 3)
    logits = real_features(test, network, 256)["logits"]
    assert network.accuracy == int((logits.argmax(1) == test.labels).sum()) / 50
    assert 0.2 < network.accuracy < 1  # or the mode of evaluation would not show


@pytest.mark.usefixtures("quick")
def test_classifier_returns_the_layers_in_the_order_asked_for(cache):
    images = blobs(4, 5).pixels(range(4))
    expected = network_of()(images)
    (path,) = cache.glob("classifier-*.pt")
    logits, features = Classifier("classifier", ["logits", "features"], path)(images.expand(-1, 3, -1, -1))
    assert torch.equal(logits, expected["logits"])
    assert torch.equal(features, expected["features"])


@pytest.mark.usefixtures("quick")
def test_classifier_is_deterministic_and_leaves_the_global_random_state(cache, monkeypatch):
    digests = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        monkeypatch.setenv("DDPM_CACHE", str(cache / str(seed)))
        digests.append(network_of().digest)
        assert torch.equal(torch.get_rng_state(), state)
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("quick")
def test_classifier_is_cached_by_content(monkeypatch):
    first = train_classifier(blobs(64, 0), blobs(16, 1), 3, 256)
    assert train_classifier(blobs(64, 2), blobs(16, 1), 3, 256) != first
    assert train_classifier(blobs(64, 0), blobs(16, 2), 3, 256) != first
    assert [file.suffix for file in first.parent.iterdir()] == [".pt"] * 3
    monkeypatch.setattr(classifier_module, "_fit", lambda *args: pytest.fail("trained again"))
    assert train_classifier(blobs(64, 0), blobs(16, 1), 3, 256) == first


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (28, 28), (33, 20), (256, 256)])
def test_classifier_takes_any_size(height, width):
    net = classifier_module.network(3, 5, (height, width)).eval()
    assert net(torch.zeros(2, 3, height, width)).shape == (2, 5)


@pytest.mark.parametrize("classes", [None, 0, 1])
def test_classifier_needs_classes(classes):
    with pytest.raises(ValueError, match=r"at least 2 classes, but this data has [01]; use features=inception"):
        train_classifier(blobs(8, 0), blobs(8, 1), classes, 256)


@pytest.mark.usefixtures("quick")
def test_extraction_evaluates_the_network_and_leaves_it_unchanged():
    network = network_of()
    images = blobs(16, 5).pixels(range(16))
    network.extractor.train()  # as a surrounding module's train() would
    alone = torch.cat([network(image[None])["features"] for image in images])
    together = network(images)
    assert torch.allclose(alone, together["features"], atol=1e-5)
    assert not network.extractor.training
    assert weights_digest(network.extractor.state_dict()) == network.digest
    assert together["features"].shape == (16, network.dim)
    assert together["features"].dtype == together["logits"].dtype == torch.float32
    assert not together["features"].requires_grad


@pytest.mark.usefixtures("quick")
def test_extraction_ignores_autocast():
    network, images = network_of(), blobs(16, 5).pixels(range(16))
    with torch.autocast("cpu", torch.bfloat16):
        inside = network(images)["features"]
    assert torch.equal(inside, network(images)["features"])


@pytest.mark.usefixtures("quick")
def test_features_of_real_images_do_not_depend_on_the_batch_size():
    network, images = network_of(), blobs(16, 5)
    everything = real_features(images, network, 256)["features"]
    assert torch.allclose(real_features(images, network, 256, batch_size=5)["features"], everything, atol=1e-5)
    assert torch.allclose(real_features(images, network, 256, n=3)["features"], everything[:3], atol=1e-5)


@pytest.mark.usefixtures("quick")
def test_grey_levels_are_spread_before_the_network():
    network, images = network_of(), blobs(16, 5, levels=17)
    spread = InMemory((images.pixels(range(16)).float() * 255 / 16).round().byte(), images.labels)
    expected = real_features(spread, network, 256)["features"]
    assert torch.equal(real_features(images, network, 17)["features"], expected)


@pytest.mark.usefixtures("quick")
def test_feature_networks_say_what_they_take():
    network = network_of()
    with pytest.raises(ValueError, match=r"images must be uint8 of shape .*, got torch.float32"):
        network(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"takes uint8 images of shape \(B, 3, 8, 8\), got .* \(1, 3, 9, 9\)"):
        network(torch.zeros(1, 1, 9, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="features must be one of inception, classifier, got 'vgg'"):
        feature_network("vgg")
    with pytest.raises(ValueError, match="needs training and test images"):
        feature_network("classifier")
    with pytest.raises(ValueError, match="must be built with the layers"):
        FeatureNetwork("inception", network.extractor)


def test_missing_inception_weights_name_the_file_and_the_ways_out(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match="no network") as caught:
        inception()
    message = str(caught.value)
    for words in (
        str(inception_module.default_path()),
        "inception_weights=PATH",
        "features=classifier",
        "https://",
    ):
        assert words in message
    assert str(inception_module.default_path()).startswith(str(tmp_path))
    with pytest.raises(ValueError, match=r"no weights file .*absent.pth; pass inception_weights=PATH"):
        inception(tmp_path / "absent.pth")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("read", [inception, lambda path: Classifier("classifier", ["features"], path)])
@pytest.mark.parametrize("write", [torch.save, lambda payload, path: path.write_bytes(pickle.dumps(payload, 2))])
def test_code_in_a_weights_file_is_refused_and_does_not_run(tmp_path, read, write):
    path, trace = tmp_path / "weights.pt", tmp_path / "executed"
    write({"format": Payload(trace)}, path)
    with pytest.raises(ValueError, match="rejected without being run") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("read", [inception, lambda path: Classifier("classifier", ["features"], path)])
def test_a_truncated_or_foreign_weights_file_is_refused_in_one_line(tmp_path, read):
    buffer = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(1000)}, buffer)
    path = tmp_path / "weights.pt"
    contents = {
        b"": "truncated",
        buffer.getvalue()[:1500]: "truncated",
        buffer.getvalue(): "does not hold the weights|is not a classifier file",
    }
    for content, message in contents.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="holds a Tensor instead of a dict of weights"):
        read(path)


def test_classifier_without_a_file_says_where_to_get_one():
    with pytest.raises(ValueError, match="pass the path that train_classifier returned"):
        Classifier("classifier", ["features"])
