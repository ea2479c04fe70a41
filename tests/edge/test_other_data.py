"""A checkpoint knows the data and the classes that it was trained with."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.commands.evaluate import evaluate
from ddpm.commands.sample import sample
from ddpm.data.image_folder import ImageFolder
from ddpm.data.images import fingerprint, same
from ddpm.lit.experiment import experiment

CLASSES = ("10", "2", "cat")
NUMBERED = "0 2, 1 10, 2 cat"


def folder(root, n=90):
    """n images of 8x8 pixels, half of them for testing, in three classes."""
    for i in range(n):
        path = root / ("train", "val")[i % 2] / CLASSES[i % 3] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 2 * i, np.uint8)).save(path)
    return root


def other_pixels(root):
    for path in (root / "train" / "cat").iterdir():
        Image.fromarray(np.full((8, 8), 7, np.uint8)).save(path)


def fewer(root):
    for path in (root / "train" / "cat").iterdir():
        path.unlink()
        break


def more(root):
    shutil.copy(root / "train" / "cat" / "002.png", root / "train" / "cat" / "more.png")


def other_labels(root):
    (root / "train" / "cat" / "002.png").rename(root / "train" / "2" / "002.png")


CHANGES = (other_pixels, fewer, more, other_labels)


@pytest.mark.parametrize("memory_gb", [8, 0])
@pytest.mark.parametrize("change", CHANGES)
def test_moved_images_are_the_same_and_changed_ones_are_not(change, memory_gb, tmp_path):
    def of(root):
        return fingerprint(ImageFolder(str(root), 8, memory_gb=memory_gb).load("train"))

    before = of(folder(tmp_path / "here"))
    assert json.loads(json.dumps(before)) == before
    moved = shutil.copytree(tmp_path / "here", tmp_path / "there")  # with the times of the files
    assert same(before, of(moved)) is True
    change(moved)
    assert same(before, of(moved)) is False
    assert same(None, before) is None


def test_pixels_and_files_cannot_be_compared_unless_their_numbers_differ(tmp_path):
    memory, disk = (fingerprint(ImageFolder(str(folder(tmp_path)), 8, memory_gb=gb).load("train")) for gb in (8, 0))
    assert same(memory, disk) is None
    assert same(memory, disk | {"n": 3}) is False


# ---------------------------------------------------------------- a conditional run on a folder

OPTIONS = ("data=image_folder", "data.image_size=8", "data.channels=1", "conditioning=class", "batch_size=8")


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    """(checkpoint, its data, what the run printed)."""
    root = folder(tmp_path_factory.mktemp("data"))
    where = tmp_path_factory.mktemp("run")
    train(where, *OPTIONS, f"data.root='{root}'", "trainer.max_steps=2")
    return where / "last.ckpt", root


@pytest.fixture
def resumed(compose, bare, run, tmp_path):
    """(root, *overrides, ckpt) -> the resumed run, built."""

    def built(root, *overrides, ckpt=run[0]):
        given = (f"data.root='{root}'", f"ckpt='{ckpt}'", f"output_dir='{tmp_path}/resumed'", *overrides)
        return experiment(compose("train", *bare, *OPTIONS, *given))

    return built


@pytest.fixture
def evaluated(compose, run, tmp_path):
    """(root, ckpt) -> metrics.json."""

    def found(root, ckpt=run[0]):
        given = (f"ckpt='{ckpt}'", f"data_root='{root}'", f"output_dir='{tmp_path}/evaluated'")
        evaluate(compose("evaluate", *given, "metrics=[nll]", "split=train", "nll.n_images=4", "nll.evaluations=3"))
        (path,) = (tmp_path / "evaluated").glob("*/metrics.json")
        return json.loads(path.read_text())

    return found


@pytest.fixture
def older(run, tmp_path):
    """The checkpoint as it was before data and classes were kept."""
    content = torch.load(run[0], weights_only=True)
    del content["ddpm_config"]["image"]["digest"], content["ddpm_config"]["image"]["class_names"]
    torch.save(content, tmp_path / "older.ckpt")
    return tmp_path / "older.ckpt"


@pytest.mark.slow
def test_resuming_on_changed_data_is_refused_unless_asked_for(resumed, run, tmp_path, capsys):
    moved = shutil.copytree(run[1], tmp_path / "moved")
    resumed(moved)
    assert "data:" not in capsys.readouterr().out
    fewer(moved)
    with pytest.raises(ValueError, match=r"with other train images \(45 then, 44 here; .* with other_data=true$"):
        resumed(moved)
    assert not (tmp_path / "resumed").exists()
    built = resumed(moved, "other_data=true")
    assert built.data.digest["train"] == fingerprint(built.data.train)


@pytest.mark.slow
def test_an_evaluation_states_whether_the_data_are_those_of_the_training(evaluated, run, tmp_path, capsys):
    moved = shutil.copytree(run[1], tmp_path / "moved")
    assert evaluated(moved)["data_of_training"] == {"train": True}
    assert "data: the train images are those of the training run" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "evaluated")
    other_pixels(moved)
    assert evaluated(moved)["data_of_training"] == {"train": False}
    assert "data: the train images are NOT those of the training run" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_without_a_digest_works_and_says_that_nothing_was_compared(
    older, resumed, evaluated, run, tmp_path, capsys
):
    moved = shutil.copytree(run[1], tmp_path / "moved")
    for split in ("train", "val"):  # so that numbers and letters agree in the order of classes
        (moved / split / "10").rename(moved / split / "1")
    resumed(moved, ckpt=older)
    assert "data: the checkpoint has no digest of its train images" in capsys.readouterr().out
    assert evaluated(moved, ckpt=older)["data_of_training"] == {"train": None}
    assert "data: the checkpoint has no digest of its train images" in capsys.readouterr().out


@pytest.mark.slow
def test_classes_that_are_called_or_numbered_otherwise_are_refused(older, resumed, evaluated, run, tmp_path):
    for use in (resumed, evaluated):  # without names, classes were in the order of letters: 10, 2, cat
        with pytest.raises(ValueError, match=r"class 0 is 2 in the data, but 10 in the checkpoint's model"):
            use(run[1], ckpt=older)
    moved = shutil.copytree(run[1], tmp_path / "moved")
    for split in ("train", "val"):
        (moved / split / "cat").rename(moved / split / "dog")
    with pytest.raises(ValueError, match=r"class 2 is dog in the data, but cat in the checkpoint's model"):
        evaluated(moved)


@pytest.mark.slow
def test_classes_are_printed_stored_and_asked_for_by_name(resumed, compose, run, tmp_path, capsys, monkeypatch):
    ckpt, root = run
    monkeypatch.setenv("COLUMNS", "200")
    resumed(root).run()
    out = capsys.readouterr().out
    assert f"3: {NUMBERED}" in out
    assert "data: train/ is the training split, val/ the test split" in out
    assert torch.load(ckpt, weights_only=True)["ddpm_config"]["image"]["class_names"] == ["2", "10", "cat"]

    def drawn(labels):
        given = (f"ckpt='{ckpt}'", f"output_dir='{tmp_path}'", "n=4", "format=npz", f"labels={labels}")
        return np.load(sample(compose("sample", *given)) / "samples.npz")["labels"].tolist()

    assert drawn("[cat,'10',0]") == [2, 1, 0, 2]
    for unknown in ("[dog]", "[10]", "[true]"):
        with pytest.raises(ValueError, match=rf"labels must be in 0\.\.2, the classes of the model \({NUMBERED}\)"):
            drawn(unknown)
