"""Checkpoints that are damaged, by accident or with intent: each is refused in one line, or does what it says."""

import copy
import functools
import hashlib
import os
import random
import time

import pytest
import torch
from torch.nn import Parameter

from ddpm.commands import errors
from ddpm.lit import resume
from ddpm.lit.experiment import experiment
from ddpm.lit.resume import resumable
from ddpm.parallel import processes
from ddpm.setup import build, entries, loading
from ddpm.setup.entries import fitting
from ddpm.setup.targets import BASES, check_targets, is_option

ESCAPE = "\x1b]0;mine\x07\n\u202e"


SMALL = ("network.multipliers=[1]", "network.attention=[]", "schedule.T=6", "trainer.max_steps=2")


@pytest.fixture(scope="module")
def content(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    train(folder, *SMALL)
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def built(compose, bare, tmp_path_factory):
    """A longer run of its options, not started."""
    folder = tmp_path_factory.mktemp("built")
    return experiment(compose("train", *bare, *SMALL, "trainer.max_steps=6", f"output_dir='{folder}'"))


@pytest.fixture
def opened(built, monkeypatch):
    """(content, weights) -> what resuming and evaluating take from a file that holds it."""
    path = "some.ckpt"
    content = {}
    monkeypatch.setattr(loading, "read_together", lambda *_, **__: loading.checked({**content}, path))
    monkeypatch.setattr(built.module, "optimizer", functools.partial(torch.optim.Adam, fused=True))
    after_one_step = resume._after_one_step
    fresh = functools.cache(lambda shape: after_one_step(built.module, Parameter(torch.zeros(shape))))
    monkeypatch.setattr(resume, "_after_one_step", lambda module, weight: fresh(weight.shape))

    def of(given, weights=("ema", "raw")):
        content.clear()
        content.update(given)
        resume.resume(built.config | {"ckpt": path}, built.module, built.trainer)
        for each in weights:
            checked = loading.checked({**content}, path)
            build.source(checked["ddpm_config"])
            build.sampler(checked["ddpm_config"]["sampler"], loading.model(checked, each).process)

    return of


def copied(value):
    """The structure anew, its tensors the same."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return [copied(each) for each in value] if type(value) is list else value


def refusal(opened, content, *weights):
    """The line that a user is shown."""
    with pytest.raises(ValueError) as shown:  # noqa: PT011 (its wording is what is returned)
        opened(content, *weights)
    return one_line(shown.value)


def one_line(error):
    line = errors.explained(error)
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < 1000, line
    return line


# ---------------------------------------------------------------- tensors

TENSORS = {
    "a weight": ("state_dict", "diffusion.network.conv_in.weight"),
    "an averaged weight": ("state_dict", "ema.network.conv_in.weight"),
    "a moment": ("optimizer_states", 0, "state", 4, "exp_avg"),
    "a second moment": ("optimizer_states", 0, "state", 4, "exp_avg_sq"),
    "the optimizer's step": ("optimizer_states", 0, "state", 4, "step"),
    "the pending losses": ("unlogged", "total"),
}
CHANGES = {
    "shape": lambda x: torch.zeros(*x.shape, 2, dtype=x.dtype),
    "fewer": lambda x: x.flatten()[:0],
    "flat": lambda x: x.reshape(1, -1),
    "half": lambda x: x.half(),
    "whole numbers": lambda x: x.long(),
    "NaN": lambda x: torch.full_like(x, float("nan")),
    "infinity": lambda x: torch.full_like(x, float("inf")),
    "sparse": lambda x: x.to_sparse(),
    "without values": lambda x: x.to("meta"),
    "no tensor": lambda x: x.tolist(),
}


def changed(content, path, change):
    content = copied(content)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = change(holder[path[-1]])
    return content


@pytest.mark.parametrize("tensor", TENSORS)
def test_a_tensor_of_another_shape_type_layout_or_without_finite_values_is_refused(opened, content, tensor):
    for name, change in CHANGES.items():
        if name == "flat" and tensor == "the pending losses":
            continue
        line = refusal(opened, changed(content, TENSORS[tensor], change))
        assert "tensor" in line or "finite" in line, name
        assert str(TENSORS[tensor][-1]) in line


def test_the_importance_samplers_history_is_checked_too(compose, bare, tmp_path):
    options = ("time_sampler=importance", "time_sampler.history=2", f"output_dir='{tmp_path}'")
    built = experiment(compose("train", *bare, *options))
    for name in ("losses", "count"):
        state = dict(built.module.state_dict())
        state[f"time_sampler.{name}"] = torch.zeros(5)
        with pytest.raises(ValueError, match=f"state_dict.time_sampler.{name} is a tensor of torch.float32"):
            fitting(state, built.module.state_dict(), "state_dict")


def test_evaluating_refuses_weights_that_are_not_finite(content):
    path = TENSORS["an averaged weight"]
    damaged = changed(content, path, lambda x: x.clone().fill_(float("nan")))
    loading.model(damaged, "raw")
    with pytest.raises(
        ValueError, match=r"the ema weights do not fit .*conv_in.weight holds values that are not finite"
    ):
        loading.model(damaged, "ema")


def test_tensors_that_share_their_memory_are_parted_before_a_step(content, built):
    shared = torch.zeros_like(content["optimizer_states"][0]["state"][4]["exp_avg"])
    resumed = resumable(copied(content), built.module, built.trainer)
    for name in ("exp_avg", "exp_avg_sq"):
        resumed["optimizer_states"][0]["state"][4][name] = shared
    built.module.on_load_checkpoint(resumed)
    moments = resumed["optimizer_states"][0]["state"][4]
    assert moments["exp_avg"].data_ptr() != moments["exp_avg_sq"].data_ptr()


# ---------------------------------------------------------------- what may be named


@pytest.mark.parametrize(
    "target",
    [
        "ddpm.data.image_folder.Path",
        "ddpm.data.image_folder.ThreadPoolExecutor",
        "ddpm.data.images.Images",
        "ddpm.network.layers.ResidualBlock",
        "ddpm.kernels.native.Path",
        "ddpm.schedule.linear.Tensor",
        "ddpm.schedule.nowhere.Nothing",
        "ddpm.sampler.base.State",
        "ddpm.loss.vlb.Loss",
    ],
)
def test_a_class_that_is_no_option_of_its_group_is_refused(target):
    with pytest.raises(ValueError, match="is not an option of ddpm"):
        check_targets({target.split(".")[1]: {"_target_": target}})


def test_an_option_of_another_group_is_refused():
    with pytest.raises(
        ValueError, match=r"names schedule._target_ = 'ddpm.loss.simple.Simple', which is not an option"
    ):
        check_targets({"schedule": {"_target_": "ddpm.loss.simple.Simple"}})
    assert is_option("ddpm.loss.simple.Simple", list(BASES))


def nested(depth):
    value = [0] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


@pytest.mark.parametrize("part", ["ddpm_config", "loops"])
def test_a_configuration_that_repeats_its_parts_without_end_is_refused_at_once(content, part):
    endless = []
    endless.append(endless)
    for value in (nested(12), endless, [0] * 10**6, nested(0) and {"a": {"b": endless}}):
        damaged = copied(content)
        damaged[part]["data"] = {"_target_": "ddpm.data.digits.Digits", "flip": value}
        start = time.process_time()
        with pytest.raises(ValueError, match="is refused: it holds more than"):
            loading.checked(damaged, "some.ckpt")
        assert time.process_time() - start < 2


# ---------------------------------------------------------------- the file


def test_the_hash_is_that_of_the_file(trained):
    assert loading.read(trained)["sha256"] == hashlib.sha256(trained.read_bytes()).hexdigest()


def test_a_file_that_takes_the_place_of_the_first_is_not_read(trained, tmp_path, monkeypatch):
    path, other = tmp_path / "a.ckpt", tmp_path / "other"
    path.write_bytes(trained.read_bytes())
    other.write_bytes(b"another")
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: (other.replace(path), digest(*given))[1])
    content = loading.read(path)
    assert content["sha256"] == hashlib.sha256(trained.read_bytes()).hexdigest()
    assert content["global_step"] == 2


def test_a_file_that_is_written_to_while_it_is_read_is_refused(trained, tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    path.write_bytes(trained.read_bytes())
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **how: (load(*given, **how), os.utime(path, (1, 1)))[0])
    with pytest.raises(ValueError, match="was written to while it was read"):
        loading.read(path)


def test_processes_that_read_different_files_are_all_told(trained, monkeypatch):
    read = []
    monkeypatch.setattr(processes, "agreed", lambda sha256: read.append(sha256) or "that of the leader")
    with pytest.raises(ValueError, match="was replaced while the processes read it"):
        loading.read_together(trained)
    assert len(read) == 1


# ---------------------------------------------------------------- single entries


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("global_step",), "two"),
        (("global_step",), True),
        (("global_step",), 1.5),
        (("global_step",), 3),
        (("optimizer_states",), []),
        (("optimizer_states", 0, "state"), {}),
        (("optimizer_states", 0, "state", 99), {}),
        (("loops",), None),
        (("loops", "fit_loop"), {}),
        (("loops", "fit_loop", "epoch_progress", "current", "ready"), -1),
        (("callbacks",), 3),
        (("unlogged",), None),
        (("ddpm_config", 3), 3),
        (("ddpm_config", "schedule", "T"), None),
        (("ddpm_config", "evaluation", "features"), 3),
        (("ddpm_config", ESCAPE), 3),
        (("ddpm_config", "schedule", ESCAPE), 3),
        (("ddpm_config", "schedule", "_target_"), f"a{ESCAPE}.b"),
        (("ddpm_config", "sampler", "spacing"), ESCAPE),
        (("ddpm_config", "data", "root"), ESCAPE),
        ((ESCAPE,), 3),
        (("state_dict", ESCAPE), torch.zeros(1)),
    ],
)
def test_an_entry_that_is_missing_or_of_the_wrong_kind_is_one_line_without_control_characters(
    opened, content, path, value
):
    damaged = copied(content)
    holder = damaged
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    refusal(opened, damaged)


# ---------------------------------------------------------------- a thousand mutations

OTHERS = [None, True, -1, 0, 7, 2.5, float("nan"), float("inf"), 10**30, "x", "", ESCAPE, "ddpm.loss.simple.Simple"]
OTHERS += [[], {}, [1, [2]], {"_target_": "os.mkdir"}, {"a": None}, (1,), b"x", 1j, torch.zeros(2), torch.float32]
KEYS = [None, 3, -1, True, 2.5, (1, 2), b"key", "", ESCAPE, "_target_", "x" * 5000, "state", 10**30]


def mutated(whole, chance):
    """With one or two entries deleted, replaced, doubled, nested, renamed or, if they are tensors, changed.

    And the parts in which they were; what is not changed is the same object.
    """
    content, parts = copy.copy(whole), set()
    for _ in range(chance.choice([1, 1, 2])):
        holder, key = content, chance.choice(list(content))
        parts.add(key)
        while isinstance(holder[key], dict | list) and len(holder[key]) and chance.random() < 0.8:
            holder[key] = copy.copy(holder[key])
            holder = holder[key]
            key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        value = holder[key]
        how = chance.choice(["delete", "replace", "double", "nest", "rename", "change", "change"])
        if how == "delete":
            del holder[key]
        elif how == "double":
            holder[key] = whole[chance.choice(list(whole))]
        elif how == "nest":
            holder[key] = chance.choice([[value], {"a": value}, {key: value}, [value, value]])
        elif how == "rename" and isinstance(holder, dict):
            holder[chance.choice(KEYS)] = holder.pop(key)
        elif isinstance(value, torch.Tensor):
            holder[key] = chance.choice(list(CHANGES.values()))(value)
        else:
            holder[key] = chance.choice(OTHERS)
    return content, parts


@pytest.mark.slow
def test_a_thousand_mutated_checkpoints_are_refused_in_one_line_or_resumed(opened, content, built, monkeypatch):
    known, new = set(), set()

    def once(found, like, path, loose=False):
        """What was found to fit at its place is not looked at a thousand times."""
        if (id(found), path) in known:
            return found
        new.add((id(found), path))
        return fitting(found, like, path, loose)

    for module in (entries, resume, loading):
        monkeypatch.setattr(module, "fitting", once)
    opened(content)
    known |= new
    accepted = []
    for seed in range(1000):
        damaged, parts = mutated(content, random.Random(seed))
        try:
            opened(damaged, ("ema",) if parts & {"ddpm_config", "state_dict"} else ())
        except ValueError as error:
            one_line(error)
        else:
            accepted.append(damaged)
    assert 20 < len(accepted) < 300
    for damaged in accepted:
        resumed = resumable(loading.checked(damaged, "some.ckpt"), built.module, built.trainer)
        built.module.on_load_checkpoint(copied(resumed))
