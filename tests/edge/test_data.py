"""Images as integers and real numbers, their sources, and the order in which training sees them."""

import gzip
import os
import pickle
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import EpsImagePlugin, Image

from ddpm.data import fashion_mnist
from ddpm.data.batches import EvalSampler, TrainBatches
from ddpm.data.cifar10 import CIFAR10
from ddpm.data.cifar100 import CIFAR100
from ddpm.data.decode import Decode
from ddpm.data.digits import Digits
from ddpm.data.fashion_mnist import FashionMNIST
from ddpm.data.image_folder import ImageFolder
from ddpm.data.images import InMemory, OnDisk
from ddpm.data.mnist import MNIST
from ddpm.data.scaling import as_uint8, to_pixels, to_unit
from ddpm.data.source import Source
from ddpm.lit.datamodule import Batch, DataModule
from ddpm.operator.inpaint import Inpaint
from ddpm.support.text import numbered

# ---------------------------------------------------------------- integers <-> [-1, 1]


def test_every_level_survives_the_round_trip_for_every_number_of_levels():
    for levels in range(2, 257):
        pixels = torch.arange(levels, dtype=torch.uint8)
        assert torch.equal(to_pixels(to_unit(pixels, levels), levels), pixels)


def test_unit_interval_is_reached_at_both_ends_and_float32():
    for levels in range(2, 257):
        x = to_unit(torch.tensor([0, levels - 1], dtype=torch.uint8), levels)
        assert x.dtype == torch.float32
        assert x.tolist() == [-1, 1]


def test_to_pixels_rounds_to_the_nearest_level_and_clamps():
    step = 2 / 255
    x = torch.tensor([-7.0, -1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.49 * step, 1 - 0.51 * step, 7.0])
    assert to_pixels(x, 256).tolist() == [0, 0, 1, 255, 254, 255]


def test_to_pixels_of_bfloat16_is_the_nearest_level_of_its_value():
    x = to_unit(torch.arange(256, dtype=torch.uint8), 256).bfloat16()
    assert torch.equal(to_pixels(x, 256), to_pixels(x.double(), 256))


def test_as_uint8_stretches_to_0_255_and_is_the_identity_for_256():
    assert torch.equal(as_uint8(torch.arange(256, dtype=torch.uint8), 256), torch.arange(256).byte())
    stretched = as_uint8(torch.arange(17, dtype=torch.uint8), 17)
    assert stretched.tolist() == [round(255 * p / 16) for p in range(17)]


@pytest.mark.parametrize("levels", [1, 257])
def test_levels_outside_2_to_256_are_refused(levels):
    pixels = torch.zeros(1, dtype=torch.uint8)
    for scale in (to_unit, to_pixels, as_uint8):
        with pytest.raises(ValueError, match=rf"levels must be in 2\.\.256, got {levels}"):
            scale(pixels, levels)


def test_scaling_what_is_scaled_already_is_refused():
    with pytest.raises(TypeError, match=r"must be uint8 grey levels, got torch\.float32; scale them only once"):
        to_unit(torch.zeros(1), 256)


# ---------------------------------------------------------------- collections of images


def test_digest_changes_with_pixels_labels_and_shape():
    pixels, labels = torch.arange(16, dtype=torch.uint8).view(2, 1, 2, 4), torch.tensor([0, 1])
    changed = pixels.clone()
    changed[1, 0, 1, 3] += 1
    digests = {
        InMemory(pixels, labels).digest(),
        InMemory(changed, labels).digest(),
        InMemory(pixels, labels + 1).digest(),
        InMemory(pixels.view(2, 1, 4, 2), labels).digest(),
    }
    assert len(digests) == 4
    assert InMemory(pixels.clone(), labels.clone()).digest() in digests


def test_images_without_one_label_each_are_refused():
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), one for each image, got \(3,\)"):
        InMemory(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.zeros(3))


# ---------------------------------------------------------------- sources


def test_digits_are_1437_and_360_disjoint_images_of_17_levels():
    source = Digits()
    train, test = source.load("train"), source.load("test")
    assert (len(train), len(test)) == (1437, 360)
    both = torch.cat([train.pixels(range(1437)), test.pixels(range(360))])
    assert both.shape[1:] == source.shape
    assert both.unique().tolist() == list(range(source.levels))
    x = to_unit(both, source.levels)
    assert (x.min(), x.max()) == (-1, 1)
    # the 1797 digits are distinct images, so that each of them is in one split only
    assert len(both.flatten(1).unique(dim=0)) == 1797
    assert torch.equal(source.load("test").pixels(range(360)), test.pixels(range(360)))


def test_digits_keep_their_labels():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    label_of = {image.astype(np.uint8).tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    for split in ("train", "test"):
        loaded = Digits().load(split)
        pixels = loaded.pixels(range(len(loaded)))
        assert loaded.labels.tolist() == [label_of[image.numpy().tobytes()] for image in pixels]


@pytest.mark.parametrize("source", [Digits(), FashionMNIST(), ImageFolder("nowhere", 8)])
def test_any_other_split_is_refused(source):
    with pytest.raises(ValueError, match='split must be "train" or "test", got \'val\''):
        source.load("val")


def test_fashion_mnist_is_read_from_debians_folder(tmp_path):
    if not fashion_mnist.DEBIAN.is_dir():
        pytest.skip("needs the package dataset-fashion-mnist")
    source = FashionMNIST(str(tmp_path))
    train, test = source.load("train"), source.load("test")
    for images, n in ((train, 60000), (test, 10000)):
        assert images.pixels(range(n)).shape == (n, *source.shape)
        assert torch.bincount(images.labels).tolist() == [n // 10] * 10
    assert source.classes[train.labels[0]] == "Ankle boot"  # the first image of the published set
    assert not list(tmp_path.iterdir())


def _idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes()


@pytest.mark.parametrize("source_class", [MNIST, FashionMNIST])
def test_root_comes_first_in_torchvisions_own_layout(source_class, tmp_path):
    raw = tmp_path / source_class.__name__ / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(3 * 28 * 28).astype(np.uint8).reshape(3, 28, 28)
    for prefix in ("train", "t10k"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(_idx(pixels))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(_idx(np.array([4, 0, 9], np.uint8)))
    images = source_class(str(tmp_path)).load("train")
    assert images.labels.tolist() == [4, 0, 9]
    assert np.array_equal(images.pixels([0, 1, 2]).squeeze(1).numpy(), pixels)


def test_debians_files_are_read_as_written(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path)
    pixels = np.arange(2 * 28 * 28).astype(np.uint8).reshape(2, 28, 28)
    for name, array in (("images-idx3", pixels), ("labels-idx1", np.array([7, 2], np.uint8))):
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(_idx(array), mtime=0))
    images = FashionMNIST(str(tmp_path / "none")).load("test")
    assert images.labels.tolist() == [7, 2]
    assert np.array_equal(images.pixels([0, 1]).squeeze(1).numpy(), pixels)


@pytest.mark.parametrize(("source_class", "key"), [(CIFAR10, "labels"), (CIFAR100, "fine_labels")])
def test_cifar_planes_become_channels(source_class, key, tmp_path, monkeypatch):
    dataset = source_class.dataset
    folder = tmp_path / dataset.base_folder
    folder.mkdir()
    rows = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    for name, _ in dataset.train_list + dataset.test_list:
        (folder / name).write_bytes(pickle.dumps({"data": rows, key: [3, 1]}))
    monkeypatch.setattr(dataset, "_check_integrity", lambda self: True)
    monkeypatch.setattr(dataset, "_load_meta", lambda self: None)
    images = source_class(str(tmp_path)).load("test")
    assert images.labels.tolist() == [3, 1]
    assert np.array_equal(images.pixels([0, 1]).numpy(), rows.reshape(2, 3, 32, 32))


def test_class_names_are_complete_and_sorted_where_the_set_sorts_them():
    assert [len(c.classes) for c in (MNIST, FashionMNIST, CIFAR10, CIFAR100)] == [10, 10, 10, 100]
    assert list(CIFAR100.classes) == sorted(set(CIFAR100.classes))


@pytest.mark.parametrize(
    ("source_class", "remedy"),
    [
        (MNIST, r"put train-images-idx3-ubyte\.gz, .*t10k-labels-idx1-ubyte\.gz under \S+/MNIST/raw,"),
        (FashionMNIST, r"apt-get install dataset-fashion-mnist, or put train-.* under \S+/FashionMNIST/raw,"),
        (CIFAR10, r"put cifar-10-python\.tar\.gz .* under "),
        (CIFAR100, r"put cifar-100-python\.tar\.gz .* under "),
    ],
)
def test_missing_data_is_one_line_that_lists_the_ways_to_provide_it(source_class, remedy, tmp_path, monkeypatch, capfd):
    def no_network(*args, **kwargs):
        raise OSError("no network\nhere")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    with pytest.raises(ValueError, match=remedy) as caught:
        source_class(str(tmp_path)).prepare()
    message = str(caught.value)
    assert message.startswith(f"{source_class.__name__} is not in {tmp_path}")
    assert "or run once with network access" in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert capfd.readouterr() == ("", "")


def _mnist(root, name, damaged, content, suffix=""):
    """Three images in torchvision's layout, one of the files with other content."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for kind, array in (
            ("images-idx3", np.zeros((3, 28, 28), np.uint8)),
            ("labels-idx1", np.arange(3, dtype="u1")),
        ):
            file = f"{prefix}-{kind}-ubyte"
            whole = gzip.compress(_idx(array), mtime=0) if suffix else _idx(array)
            (raw / f"{file}{suffix}").write_bytes(content if file == damaged else whole)
    return raw / f"{damaged}{suffix}"


@pytest.mark.parametrize("source_class", [MNIST, FashionMNIST])
def test_gzipped_files_in_root_are_read(source_class, tmp_path):
    _mnist(tmp_path, source_class.__name__, None, b"", ".gz")
    assert source_class(str(tmp_path)).load("train").labels.tolist() == [0, 1, 2]


HTML = b"<!DOCTYPE html><title>404</title>"
CUT = gzip.compress(bytes(1000), mtime=0)[:-9]


@pytest.mark.parametrize(
    ("file", "content", "suffix", "why"),
    [
        ("t10k-images-idx3-ubyte", b"", "", "it is empty"),
        ("t10k-images-idx3-ubyte", HTML, "", "it is not an IDX file of bytes"),
        ("t10k-images-idx3-ubyte", _idx(np.zeros((3, 28, 28), "u1"))[:-1], "", "it holds 2351 bytes instead of 3 x 28"),
        ("t10k-images-idx3-ubyte", b"\0\0\x08\x03\0", "", "it holds 0 bytes"),
        ("t10k-images-idx3-ubyte", _idx(np.zeros((3, 8, 8), "u1")), "", r"its images have shape \(8, 8\), not"),
        ("t10k-labels-idx1-ubyte", _idx(np.array([0, 10, 2], "u1")), "", "it holds label 10, but there are 10 classes"),
        ("t10k-labels-idx1-ubyte", _idx(np.array([0, 1], "u1")), "", r"its labels have shape \(2,\), for 3 images"),
        ("t10k-images-idx3-ubyte", b"", ".gz", "it is empty"),
        ("t10k-images-idx3-ubyte", HTML, ".gz", "Not a gzipped file"),
        ("t10k-labels-idx1-ubyte", CUT, ".gz", "Compressed file ended"),
    ],
)
@pytest.mark.parametrize("source_class", [MNIST, FashionMNIST])
def test_a_damaged_file_of_mnist_is_named_with_the_reason_and_the_remedy(
    source_class, file, content, suffix, why, tmp_path
):
    path = _mnist(tmp_path, source_class.__name__, file, content, suffix)
    for fail in (lambda source: [source.prepare(), source.load("test")], lambda source: source.load("test")):
        with pytest.raises(ValueError, match=f"^{path} is damaged \\({why}.*\\); remove it, and .* under ") as caught:
            fail(source_class(str(tmp_path)))
        assert "\n" not in str(caught.value)


def test_a_damaged_file_of_debians_asks_for_its_package_again(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path)
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / f"t10k-{kind}-ubyte.gz").write_bytes(CUT)
    with pytest.raises(ValueError, match=r"is damaged \(.*\); apt-get install --reinstall dataset-fashion-mnist"):
        FashionMNIST(str(tmp_path / "none")).load("test")


@pytest.mark.parametrize("source_class", [CIFAR10, CIFAR100])
def test_a_damaged_file_of_cifar_is_named_with_the_remedy(source_class, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    folder = tmp_path / source_class.dataset.base_folder
    folder.mkdir()
    path = folder / source_class.dataset.test_list[0][0]
    path.write_bytes(HTML)
    for fail in (lambda source: source.prepare(), lambda source: source.load("train")):
        with pytest.raises(ValueError, match=f"^{path} is damaged .*; remove it, and put .* under {tmp_path}"):
            fail(source_class(str(tmp_path)))


def test_many_classes_are_numbered_in_one_line():
    assert numbered(MNIST.classes) == "0..9"
    assert numbered(CIFAR10.classes).startswith("0 airplane, 1 automobile, ")
    assert numbered(CIFAR100.classes).startswith("0 apple, ")
    assert numbered(CIFAR100.classes).endswith(", 9 bottle, ..., 99 worm")
    assert numbered(["a\x1b[2J"]) == "0 a\\x1b[2J"


# ---------------------------------------------------------------- folders of images


def _save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)


def _grey_folder(root, n=40, size=8, folders=("",)):
    """n uniform images, the i-th of level i, dealt to the folders in turn."""
    for i in range(n):
        _save(root / folders[i % len(folders)] / f"{i:03d}.png", np.full((size, size), i, np.uint8))
    return root


def _load_one(path, channels, size=4):
    """The one image of a folder, by way of both splits."""
    for split in ("train", "test"):
        target = path.parent / "split" / split / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return ImageFolder(str(path.parent / "split"), size, channels).load("test").pixels([0])[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_one_white_and_one_black_half_look_the_same_in_every_mode(mode, channels, tmp_path):
    halves = np.zeros((6, 8), np.uint8)
    halves[:, 4:] = 255
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        _save(path, halves.astype(np.uint16) * 257)
    else:
        _save(path, halves, mode)
    with Image.open(path) as image:
        assert image.mode == mode
    pixels = _load_one(path, channels, size=6)
    assert torch.equal(pixels, torch.from_numpy(halves[:, 1:7].copy()).expand(channels, 6, 6))


def test_sixteen_bit_grey_is_scaled_by_257_with_rounding(tmp_path):
    levels = np.array([[0, 128, 129, 257], [1000, 20000, 32768, 40000]] * 2, np.uint16)
    levels[3, 3] = 65535
    _save(tmp_path / "image.png", levels)
    expected = np.round(levels / 257).astype(np.uint8)
    assert np.array_equal(_load_one(tmp_path / "image.png", 1)[0].numpy(), expected)


def _tiff(path, data, bits, photometric=1, sample_format=1):
    """A grey TIFF of 4 x 4 pixels in one strip."""
    values = dict.fromkeys((256, 257, 278), 4) | {258: bits, 259: 1, 262: photometric, 277: 1, 279: len(data)}
    values[339] = sample_format
    values[273] = 8 + 2 + 12 * (len(values) + 1) + 4  # where the strip begins
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + data)


def _png(path, levels):
    """A PNG of 16-bit colours, which PIL does not write; levels of shape (H, W, 3)."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize(("photometric", "expected"), [(1, [0, 100, 200, 255]), (0, [255, 155, 55, 0])])
def test_sixteen_bit_tiffs_are_turned_around_where_zero_is_white(photometric, expected, tmp_path):
    levels = np.tile(np.array([0, 100 * 257, 200 * 257, 65535], "<u2"), (4, 1))
    _tiff(tmp_path / "image.tif", levels.tobytes(), 16, photometric)
    assert _load_one(tmp_path / "image.tif", 1)[0].tolist() == [expected] * 4


def test_white_of_a_twelve_bit_tiff_is_4095(tmp_path):
    row = bytes.fromhex("000fff800001")  # 0, 4095, 2048, 1: two levels in three bytes
    _tiff(tmp_path / "image.tif", row * 4, 12)
    assert _load_one(tmp_path / "image.tif", 1)[0].tolist() == [[0, 255, 128, 0]] * 4


def test_sixteen_bit_colours_are_those_of_eight(tmp_path):
    levels = np.random.RandomState(0).randint(256, size=(4, 4, 3))
    _png(tmp_path / "image.png", levels * 257)
    assert np.array_equal(_load_one(tmp_path / "image.png", 3).permute(1, 2, 0).numpy(), levels)


TWELVE_BITS = np.arange(16).reshape(4, 4) * 273


@pytest.mark.parametrize(
    ("name", "write", "why"),
    [
        ("12.png", lambda path: _save(path, TWELVE_BITS.astype(np.uint16)), "all fit in 12 bits"),
        ("12.tif", lambda path: _tiff(path, TWELVE_BITS.astype("<u2").tobytes(), 16), "all fit in 12 bits"),
        ("12rgb.png", lambda path: _png(path, np.stack([TWELVE_BITS] * 3, 2)), "all fit in 12 bits"),
        ("int32.tif", lambda path: _tiff(path, TWELVE_BITS.astype("<i4").tobytes(), 32, 1, 2), "32-bit integers"),
        ("uint32.tif", lambda path: _tiff(path, TWELVE_BITS.astype("<u4").tobytes(), 32), "32-bit integers"),
        ("int16.tif", lambda path: _tiff(path, TWELVE_BITS.astype("<i2").tobytes(), 16, 1, 2), "16-bit integers"),
        ("int8.tif", lambda path: _tiff(path, bytes(range(120, 136)), 8, 1, 2), "8-bit integers"),
        ("real.tif", lambda path: _save(path, TWELVE_BITS.astype(np.float32)), "numbers of unknown range"),
    ],
)
def test_an_image_whose_white_is_not_known_is_refused_by_name_and_reason(name, write, why, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=rf"^cannot read \S+{name} \(its .*{why}.*\); replace it"):
        _load_one(tmp_path / name, 1)


def test_a_black_image_of_sixteen_bits_is_black(tmp_path):
    _save(tmp_path / "image.png", np.zeros((4, 4), np.uint16))
    assert not _load_one(tmp_path / "image.png", 1).any()


@pytest.mark.parametrize("name", ["cat.png", "cat.jpg"])
@pytest.mark.parametrize(
    "reads",
    [
        lambda path: _load_one(path, 3),
        lambda path: Decode(4, 3).check(path),
        lambda path: Inpaint(str(path)).check((3, 4, 4)),
    ],
)
def test_no_program_is_run_for_a_file_that_only_its_name_makes_an_image(reads, name, tmp_path, monkeypatch):
    run = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: run.append(args) or Image.new("RGB", (4, 4)))
    (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match=rf"^cannot read \S+{name} \(it is not a complete image of type PNG, .*\); "):
        reads(tmp_path / name)
    assert not run


def test_a_mask_is_read_by_the_rule_of_images(tmp_path):
    levels = np.zeros((4, 4), np.uint16)
    levels[:, 2:], levels[0, 0] = 65535, 0x00FF  # PIL's own conversion to 8 bits calls 255 of 65535 white
    _save(tmp_path / "mask.png", levels)
    assert Inpaint(str(tmp_path / "mask.png")).known(4, 4).tolist() == [[0, 0, 1, 1]] * 4


def test_names_that_are_no_utf_8_are_read_and_shown(tmp_path):
    odd = Path(os.fsdecode(b"caf\xe9"))
    _grey_folder(tmp_path, folders=("bar", odd))
    for memory_gb in (8, 0):
        source = ImageFolder(str(tmp_path), 8, channels=1, memory_gb=memory_gb)
        images = source.load("train")
        assert images.labels.tolist() == [level % 2 for level in _levels(images)]
        assert len(images.digest()) == 64
    assert source.classes == ("bar", "caf\\udce9")
    (tmp_path / odd / "\x1b[2Jbroken\n.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot read \S+/caf\\udce9/\\x1b\[2Jbroken\\n\.png \(") as caught:
        [ImageFolder(str(tmp_path), 8).load(split) for split in ("train", "test")]
    assert str(caught.value).isprintable()


def test_palette_images_have_the_colours_of_their_palette(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 10, 20, 30])
    image.save(tmp_path / "image.png")
    assert _load_one(tmp_path / "image.png", 3)[:, 0, 0].tolist() == [10, 20, 30]


def test_transparent_pixels_are_laid_over_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (200, 100, 50, 255)
    _save(tmp_path / "image.png", rgba)
    pixels = _load_one(tmp_path / "image.png", 3)
    assert pixels[:, 0, 0].tolist() == [200, 100, 50]
    assert pixels[:, 3, 3].tolist() == [255, 255, 255]


def test_reduction_averages_instead_of_skipping_pixels(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    _save(tmp_path / "image.png", stripes)
    pixels = _load_one(tmp_path / "image.png", 1, size=8).float()
    assert ((pixels - 127.5).abs() < 12).all()


def test_an_image_smaller_than_image_size_names_the_file_and_the_remedy(tmp_path):
    _grey_folder(tmp_path)
    _save(tmp_path / "small.png", np.zeros((5, 9), np.uint8))
    source = ImageFolder(str(tmp_path), 6)
    with pytest.raises(ValueError, match=r"small\.png has 9x5 pixels.*image_size=6; choose image_size <= 5,"):
        [source.load(split) for split in ("train", "test")]


@pytest.mark.parametrize("memory_gb", [8, 0])
def test_an_unreadable_image_names_the_file_and_the_remedy(memory_gb, tmp_path):
    _grey_folder(tmp_path)
    (tmp_path / "broken.png").write_text("not an image")
    source = ImageFolder(str(tmp_path), 8, memory_gb=memory_gb)
    with pytest.raises(ValueError, match=r"cannot read \S+broken\.png \(.*\); replace it .* or remove it"):
        [source.load(split) for split in ("train", "test")]


@pytest.mark.parametrize("kept", [4, 7])  # eighths: the cut is in the header, in the pixels
def test_a_truncated_image_names_the_file_and_the_remedy(kept, tmp_path):
    noise = np.random.RandomState(0).randint(256, size=(32, 32, 3)).astype(np.uint8)
    _save(tmp_path / "whole.jpg", noise)
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) * kept // 8])
    with pytest.raises(ValueError, match=r"cannot read \S+cut\.jpg \((?i:.*truncated.*)\); replace it"):
        _load_one(tmp_path / "cut.jpg", 3)


def test_a_missing_and_an_empty_folder_say_so(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder \S+nowhere; set root to"):
        ImageFolder(str(tmp_path / "nowhere"), 8).load("train")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"there are no images in .*; put \.png"):
        ImageFolder(str(tmp_path), 8).load("train")


def test_a_split_without_images_says_what_to_do(tmp_path):
    _grey_folder(tmp_path, n=2)
    with pytest.raises(ValueError, match=r"test_fraction=1e-06 leaves no test image in .*; add images, change"):
        ImageFolder(str(tmp_path), 8, test_fraction=1e-6).load("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
        ({"channels": 4}, r"channels must be 1 \(grey\) or 3 \(colour\), got 4"),
        ({"test_fraction": 1.0}, r"test_fraction must be in \(0, 1\), got 1.0"),
        ({"memory_gb": -1}, "memory_gb must be at least 0, got -1"),
    ],
)
def test_image_folder_refuses_what_is_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(**({"root": "x", "image_size": 8} | options))


def _levels(images):
    return images.pixels(range(len(images)))[:, 0, 0, 0].tolist()


def test_the_split_of_a_folder_is_disjoint_complete_and_stable(tmp_path):
    _grey_folder(tmp_path, n=100)
    source = ImageFolder(str(tmp_path), 8, channels=1, test_fraction=0.3)
    train, test = _levels(source.load("train")), _levels(source.load("test"))
    assert sorted(train + test) == list(range(100))
    assert 15 <= len(test) <= 45
    for i in range(100, 130):  # more files move none of the old ones
        _save(tmp_path / f"{i:03d}.png", np.full((8, 8), i, np.uint8))
    again = ImageFolder(str(tmp_path), 8, channels=1, test_fraction=0.3)
    assert [level for level in _levels(again.load("test")) if level < 100] == test


def test_the_split_of_a_folder_is_the_same_on_every_machine(tmp_path):
    _grey_folder(tmp_path, n=100)
    test = ImageFolder(str(tmp_path), 8, channels=1, test_fraction=0.1).load("test")
    assert _levels(test) == [22, 38, 41, 48, 52, 62, 72, 82, 95]  # SHA-256 of "022.png", ...


def test_folders_named_train_and_test_are_the_splits(tmp_path):
    _grey_folder(tmp_path, n=10, folders=("train", "test"))
    source = ImageFolder(str(tmp_path), 8, channels=1)
    assert _levels(source.load("train")) == [0, 2, 4, 6, 8]
    assert _levels(source.load("test")) == [1, 3, 5, 7, 9]
    assert source.classes == ()


@pytest.mark.parametrize("folders", [("cat", "dog/old"), ("train/cat", "train/dog", "test/cat", "test/dog")])
def test_subfolders_are_classes_and_labels_match_the_images(folders, tmp_path):
    _grey_folder(tmp_path, folders=folders)
    source = ImageFolder(str(tmp_path), 8, channels=1, test_fraction=0.4)
    assert source.classes == ("cat", "dog")
    for split in ("train", "test"):
        images = source.load(split)
        # odd levels were saved in the folders of dogs
        assert images.labels.tolist() == [level % 2 for level in _levels(images)]
        assert set(images.labels.tolist()) == {0, 1}


def test_images_directly_in_root_leave_no_classes(tmp_path):
    _grey_folder(tmp_path, folders=("", "dog"))
    source = ImageFolder(str(tmp_path), 8)
    assert source.classes == ()
    assert not source.load("train").labels.any()


def test_linked_folders_and_files_are_read_and_loops_end(tmp_path):
    root, far = tmp_path / "root", tmp_path / "far"
    _grey_folder(root / "cat", n=20)
    _grey_folder(far / "deep", n=20)
    (root / "dog").symlink_to(far)
    (root / "cat" / "link.png").symlink_to(far / "deep" / "000.png")
    (far / "up").symlink_to(root)  # by way of dog
    (root / "cat" / "itself").symlink_to(root / "cat" / "itself")
    (root / "cat" / "again").symlink_to(root / "cat")
    source = ImageFolder(str(root), 8, channels=1, test_fraction=0.4)
    assert source.classes == ("cat", "dog")
    train, test = source.load("train"), source.load("test")
    assert sorted(_levels(train) + _levels(test)) == sorted([0, *range(20), *range(20)])
    assert sorted(torch.cat([train.labels, test.labels]).tolist()) == [0] * 21 + [1] * 20
    (note,) = source.notes
    assert "2 links to folders already read (such as cat/again)" in note
    assert "cat/itself" in note


def test_a_folder_keeps_its_own_name_where_a_link_leads_to_it_too(tmp_path):
    _grey_folder(tmp_path / "z", n=30)
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert ImageFolder(str(tmp_path), 8).classes == ("z",)


def test_what_is_left_out_is_counted_in_one_line(tmp_path):
    _grey_folder(tmp_path, n=80, folders=("cat", "dog"))
    assert ImageFolder(str(tmp_path), 8, test_fraction=0.3).notes == ()
    for name in ("a.jfif", "b.JFIF", "c.avif", "d.npy", ".hidden.png", "notes", "e\x1b.zip", "f.zip", "g.7z", "h.rar"):
        (tmp_path / "cat" / name).write_text("")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    source = ImageFolder(str(tmp_path), 8, test_fraction=0.3)
    assert len(source.load("train")) + len(source.load("test")) == 80
    (note,) = source.notes
    assert note.startswith("left out: 2 .jfif (such as cat/a.jfif), 2 .zip (such as cat/e\\x1b.zip), 1 .7z (such as ")
    assert note.endswith(", 4 others")
    for name in ("a.jfif", "b.JFIF", "e\x1b.zip", "f.zip", "g.7z", "h.rar", "notes"):
        (tmp_path / "cat" / name).unlink()
    assert ImageFolder(str(tmp_path), 8, test_fraction=0.3).notes == (
        "left out: 1 .avif (such as cat/c.avif), 1 .npy (such as cat/d.npy), 1 broken links (such as cat/gone.png), "
        "1 hidden (such as cat/.hidden.png), 1 special files (such as cat/pipe.png)",
    )


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path, monkeypatch):
    _grey_folder(tmp_path, n=80, folders=("cat", "dog"))
    listed = os.scandir

    def closed(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert ImageFolder(str(tmp_path), 8, test_fraction=0.3).notes == (
        "left out: 1 folders that cannot be read (such as dog)",
    )


def test_a_folder_without_images_says_what_is_there(tmp_path):
    (tmp_path / "a.jfif").write_text("")
    with pytest.raises(ValueError, match=r"there are no images in .*; found only 1 \.jfif \(such as a\.jfif\)$"):
        ImageFolder(str(tmp_path), 8).load("train")


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "val", "Val", "valid", "Validation"])
def test_train_and_val_or_test_are_a_split_in_any_case_and_said(train, test, tmp_path):
    _grey_folder(tmp_path, n=10, folders=(f"{train}/cat", f"{test}/cat"))
    source = ImageFolder(str(tmp_path), 8, channels=1)
    assert _levels(source.load("train")) == [0, 2, 4, 6, 8]
    assert _levels(source.load("test")) == [1, 3, 5, 7, 9]
    assert source.classes == ("cat",)
    assert source.notes == (f"{train}/ is the training split, {test}/ the test split",)


def test_test_comes_before_val_and_what_lies_beside_the_splits_is_said(tmp_path):
    _grey_folder(tmp_path, n=9, folders=("train", "test", "val"))
    source = ImageFolder(str(tmp_path), 8, channels=1)
    assert _levels(source.load("test")) == [1, 4, 7]
    assert source.notes[1] == "left out: 1 outside the splits (such as val)"


def test_numbers_in_the_names_of_classes_sort_as_numbers(tmp_path):
    names = ("class10", "class2", "class1", "b", "class02", "10", "9")
    _grey_folder(tmp_path, n=70, folders=names)
    source = ImageFolder(str(tmp_path), 8, channels=1)
    assert source.classes == ("9", "10", "b", "class1", "class02", "class2", "class10")
    images = source.load("train")
    assert [names[level % 7] for level in _levels(images)] == [source.classes[label] for label in images.labels]


def test_an_image_beside_the_folders_that_leaves_no_classes_is_said(tmp_path):
    _grey_folder(tmp_path, folders=("", "dog"))
    (note,) = ImageFolder(str(tmp_path), 8).notes
    assert note == "there are no classes, because of 20 images next to the folders (such as 000.png)"


def test_on_disk_and_in_memory_hold_the_same_images(tmp_path):
    _grey_folder(tmp_path, folders=("a", "b"))
    memory, disk = (ImageFolder(str(tmp_path), 8, memory_gb=gb).load("train") for gb in (8, 0))
    assert isinstance(memory, InMemory)
    assert isinstance(disk, OnDisk)
    assert len(memory) == len(disk)
    assert torch.equal(memory.labels, disk.labels)
    for indices in ([3, 0, 3], torch.tensor([2, 1])):
        assert torch.equal(memory.pixels(indices), disk.pixels(indices))


def test_digest_on_disk_changes_with_the_files_and_the_settings(tmp_path):
    _grey_folder(tmp_path)

    def digest(**options):
        return ImageFolder(str(tmp_path), **({"image_size": 8, "memory_gb": 0} | options)).load("train").digest()

    before = digest()
    assert digest() == before
    assert digest(image_size=4) != before
    assert digest(channels=1) != before
    for path in tmp_path.iterdir():
        _save(path, np.full((8, 8), 200, np.uint8))
    assert digest() != before


# ---------------------------------------------------------------- the order of training


def test_a_batch_is_a_function_of_seed_and_k_only():
    forwards, backwards = TrainBatches(23, 4, seed=5, flip=True), TrainBatches(23, 4, seed=5, flip=True)
    there = [forwards.batch(k).tolist() for k in range(30)]
    back = [backwards.batch(k).tolist() for k in reversed(range(30))]
    assert there == back[::-1]
    assert there != [TrainBatches(23, 4, seed=6, flip=True).batch(k).tolist() for k in range(30)]


def test_neighbouring_seeds_and_passes_share_no_order():
    orders = [tuple(TrainBatches(50, 50, seed=seed).batch(e).tolist()) for seed in range(5) for e in range(5)]
    assert len(set(orders)) == 25


def test_a_pass_repeats_no_image_and_drops_the_remainder():
    batches = TrainBatches(23, 4, seed=0, flip=True)
    assert batches.batches_per_pass == 5
    for e in range(4):
        seen = torch.cat([batches.batch(5 * e + j) for j in range(5)]) % 23
        assert len(seen.unique()) == 20


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    module = DataModule(Digits(flip=True), 32)
    next(iter(module.train_dataloader()))
    next(iter(module.val_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_are_disjoint_and_their_union_does_not_depend_on_their_number():
    total = 12
    for k in range(9):
        alone = TrainBatches(50, total, seed=1, flip=True).batch(k)
        for world in (2, 3, 4):
            ranks = [TrainBatches(50, total // world, 1, True, rank, world).batch(k) for rank in range(world)]
            union = torch.cat(ranks)
            assert len(union.unique()) == total
            assert sorted(union.tolist()) == sorted(alone.tolist())


def test_too_few_images_for_a_batch_say_what_to_choose():
    with pytest.raises(ValueError, match=r"7 training images are too few .* 4 .* 2 processes; choose batch_size <= 3"):
        TrainBatches(7, 4, world=2)


def test_half_of_the_images_are_mirrored_and_none_without_flip():
    drawn = torch.cat([TrainBatches(1000, 100, flip=True).batch(k) for k in range(100)])
    assert abs((drawn >= 1000).double().mean() - 0.5) < 0.02  # four standard errors
    assert drawn.max() < 2000
    assert TrainBatches(1000, 1000).batch(0).max() < 1000


def test_evaluation_sees_each_image_exactly_once_for_any_number_of_ranks():
    for world in (1, 2, 3):
        for n in (1, 10, 11, 12):
            ranks = [EvalSampler(n, 4, rank, world) for rank in range(world)]
            seen = torch.cat([batch for sampler in ranks for batch in sampler])
            assert sorted(seen.tolist()) == list(range(n))
            assert all(len(list(sampler)) == len(sampler) for sampler in ranks)


# ---------------------------------------------------------------- the DataModule


class Numbered(Source):
    """n images; image i holds i in its left and 100 + i in its right pixel, and has label i % 3."""

    shape = (1, 1, 2)

    def __init__(self, n=10, flip=False):
        super().__init__(flip)
        self.n = n
        self.loads = 0

    def load(self, split):
        self.loads += 1
        i = torch.arange(self.n)
        return InMemory(torch.stack([i, 100 + i], 1).byte().view(-1, 1, 1, 2), i % 3)


def test_flip_mirrors_left_and_right_and_keeps_index_and_label():
    module = DataModule(Numbered(flip=True), 5, seed=1)
    mirrored = 0
    for batch in module.train_dataloader():
        for pixels, label, i in zip(batch.x_0[:, 0, 0], batch.label, batch.index, strict=True):
            assert sorted(pixels.tolist()) == [i, 100 + i]
            assert label == i % 3
            mirrored += int(pixels[0] > pixels[1])
    assert 0 < mirrored < 10


def test_evaluation_is_in_order_and_never_mirrored():
    module = DataModule(Numbered(flip=True), 5, eval_batch_size=4)
    for loader in (module.val_dataloader(), module.test_dataloader(), module.predict_dataloader()):
        batches = list(loader)
        assert [len(batch.index) for batch in batches] == [4, 4, 2]
        assert torch.cat([batch.index for batch in batches]).tolist() == list(range(10))
        assert torch.cat([batch.x_0 for batch in batches])[:, 0, 0, 0].tolist() == list(range(10))


def test_ranks_evaluate_each_image_exactly_once_without_padding():
    for world in (1, 2, 3):
        seen = []
        for rank in range(world):
            module = DataModule(Numbered(), 3)
            module.trainer = SimpleNamespace(global_rank=rank, world_size=world)
            seen += [i for batch in module.val_dataloader() for i in batch.index.tolist()]
        assert sorted(seen) == list(range(10))


def test_ranks_train_on_disjoint_images():
    seen = []
    for rank in range(2):
        module = DataModule(Numbered(), 5)
        progress = SimpleNamespace(total=SimpleNamespace(processed=0, completed=0), current=SimpleNamespace())
        module.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            global_step=3,
            max_steps=4,
            accumulate_grad_batches=1,
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        )
        seen += [i for batch in module.train_dataloader() for i in batch.index.tolist()]
    assert sorted(seen) == list(range(10))


def test_splits_are_loaded_once():
    source = Numbered()
    module = DataModule(source, 2)
    module.setup()
    module.setup("fit")
    assert module.images("train") is module.train
    assert module.images("test") is module.test
    assert source.loads == 2


def test_workers_change_nothing():
    alone, helped = (DataModule(Numbered(flip=True), 3, num_workers=n).train_dataloader() for n in (0, 1))
    for a, b in zip(alone, helped, strict=True):
        assert isinstance(b, Batch)
        assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_breaks_later_is_named_in_one_line_whoever_reads_it(num_workers, tmp_path):
    _grey_folder(tmp_path)
    module = DataModule(ImageFolder(str(tmp_path), 8, memory_gb=0), 4, num_workers=num_workers)
    module.setup()
    for path in tmp_path.glob("*.png"):
        path.write_text("not an image")
    with pytest.raises(ValueError, match=r"^cannot read \S+\.png \(.*\); replace it") as caught:
        list(module.train_dataloader())
    assert "\n" not in str(caught.value)


def test_workers_need_no_shared_memory(monkeypatch):
    here, share, shared = os.getpid(), torch.UntypedStorage._share_fd_cpu_, []

    def recorded(self, *args, **options):
        if os.getpid() != here:
            os._exit(1)  # which the loader notices, unlike memory that is full
        shared.append(self)
        return share(self, *args, **options)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", recorded)
    module = DataModule(Numbered(), 3, num_workers=1)
    assert len(list(module.train_dataloader())) == 3
    assert len(list(module.val_dataloader())) == 4
    assert not shared


def test_workers_that_cannot_be_started_say_what_to_choose(monkeypatch):
    def full(loader):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", full)
    with pytest.raises(ValueError, match=r"num_workers=1 .* \(No space left on device; .*; choose fewer"):
        next(iter(DataModule(Numbered(), 3, num_workers=1).val_dataloader()))


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size", "seed", "num_workers"])
def test_datamodule_refuses_what_is_out_of_range(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least [01], got -1"):
        DataModule(Numbered(), **({"batch_size": 2} | {name: -1}))


class Recorder(lightning.LightningModule):
    """Remembers the batches that it was given; saves after each micro-batch in save_at."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.seen, self.pixels, self.bar = [], [], [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch.index.tolist())
        self.bar.append((batch_idx, self.trainer.num_training_batches))
        return self._look(batch)

    def validation_step(self, batch, batch_idx):
        self.seen += batch.index.tolist()
        return self._look(batch)

    test_step = predict_step = validation_step

    def _look(self, batch):
        assert batch.x_0.dtype == torch.float32
        self.pixels.append((batch.x_0, batch.index))
        return self.weight * batch.x_0.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(lightning.Callback):
    def __init__(self, path, micro_batch):
        self.path, self.micro_batch = path, micro_batch

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.micro_batch:
            trainer.save_checkpoint(self.path)


def _trainer(max_steps, accumulate=1, callbacks=(), **options):
    return lightning.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        accelerator="cpu",
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        logger=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **({"limit_val_batches": 0, "enable_progress_bar": False} | options),
    )


def _fit(max_steps, accumulate=1, callbacks=(), ckpt_path=None, **options):
    trainer, module = _trainer(max_steps, accumulate, callbacks, **options), Recorder()
    trainer.fit(module, datamodule=DataModule(Numbered(), 3, seed=2), ckpt_path=ckpt_path, weights_only=True)
    assert trainer.global_step == max_steps
    return trainer, module


def _expected(micro_batches):
    batches = TrainBatches(10, 3, seed=2)
    return [batches.batch(k).tolist() for k in range(micro_batches)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_is_one_epoch_of_max_steps(accumulate):
    trainer, module = _fit(10, accumulate)
    assert module.trained == _expected(10 * accumulate)
    assert module.bar == [(k, 10 * accumulate) for k in range(10 * accumulate)]
    assert trainer.current_epoch == 1


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stopped_at", [6, 10])
@pytest.mark.parametrize("how", ["during", "after"])
def test_resuming_continues_with_the_next_batch(how, stopped_at, accumulate, tmp_path):
    path = tmp_path / "last.ckpt"
    during = [SaveAt(path, 6 * accumulate)] if how == "during" else []
    trainer, first = _fit(6 if how == "after" else stopped_at, accumulate, during)
    if how == "after":
        trainer.save_checkpoint(path)
    resumed, second = _fit(10, accumulate, ckpt_path=path)
    assert first.trained[: 6 * accumulate] + second.trained == _expected(10 * accumulate)
    assert second.bar == [(k, 10 * accumulate) for k in range(6 * accumulate, 10 * accumulate)]
    assert resumed.current_epoch == (1 if how == "during" else 2)  # "after" had ended its epoch


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_resuming_from_model_checkpoint_continues_with_the_next_batch(tmp_path):
    first, again = (ModelCheckpoint(tmp_path, every_n_train_steps=2, save_last=True) for _ in range(2))
    _fit(6, callbacks=[first])
    _, second = _fit(10, callbacks=[again], ckpt_path=tmp_path / "last.ckpt")
    assert second.trained == _expected(10)[6:]
    assert second.bar == [(k, 10) for k in range(6, 10)]


def test_resuming_amid_an_accumulation_repeats_it_whole(tmp_path):
    _fit(6, 2, [SaveAt(tmp_path / "odd.ckpt", 7)])
    _, second = _fit(10, 2, ckpt_path=tmp_path / "odd.ckpt")
    assert second.trained == _expected(20)[6:]


def test_resuming_with_another_accumulation_keeps_the_steps(tmp_path):
    _fit(6, 2, [SaveAt(tmp_path / "two.ckpt", 8)])  # 4 steps
    _, second = _fit(10, 3, ckpt_path=tmp_path / "two.ckpt")
    assert second.trained == _expected(30)[12:]


def test_resuming_with_validation_between_keeps_the_batches(tmp_path):
    options = {"val_check_interval": 3, "limit_val_batches": 1.0, "num_sanity_val_steps": 1}
    _fit(6, callbacks=[SaveAt(tmp_path / "six.ckpt", 6)], **options)
    _, second = _fit(10, ckpt_path=tmp_path / "six.ckpt", **options)
    assert second.trained == _expected(10)[6:]


def test_pixels_are_scaled_exactly_once_in_every_stage():
    trainer, module, data = _trainer(4, limit_val_batches=1.0), Recorder(), DataModule(Numbered(), 3)
    trainer.fit(module, datamodule=data)
    for run in (trainer.validate, trainer.test, trainer.predict):
        module.seen.clear()
        module.pixels.clear()
        run(module, datamodule=data)
        assert sorted(module.seen) == list(range(10))
        for x_0, index in module.pixels:
            assert torch.equal(x_0, to_unit(data.test.pixels(index), 256))


def test_a_run_without_max_steps_says_what_to_give():
    with pytest.raises(ValueError, match="counted in steps: max_steps must be >= 0, got -1"):
        _trainer(-1).fit(Recorder(), datamodule=DataModule(Numbered(), 3))


# ---------------------------------------------------------------- config


def test_every_data_config_gives_every_keyword_and_builds():
    import inspect

    from hydra.utils import get_class, instantiate
    from omegaconf import OmegaConf

    for path in (Path(__file__).parents[2] / "conf" / "data").glob("*.yaml"):
        config = OmegaConf.load(path)
        source_class = get_class(config._target_)
        assert source_class.__module__ == f"ddpm.data.{path.stem}"
        assert set(config) - {"_target_"} == set(inspect.signature(source_class).parameters)
        if OmegaConf.is_missing(config, "root"):
            config.root = "images"
        assert isinstance(instantiate(config), Source)
