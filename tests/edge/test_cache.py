"""The cache of kernels and classifiers: whole, the user's own, and written by no one else."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from ddpm.kernels import native
from ddpm.support import cache
from ddpm.support.files import written

MAKER = """
import runpy, sys, time

def make(path):
    path.write_text("half")
    (path.parent / "of_the_compiler").write_text("half")
    print("making", flush=True)
    time.sleep(1000)

runpy.run_path(sys.argv[1])["kept"]("thing.txt", make)
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The folder of the cache, which is not there yet."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def thing(text="content"):
    return cache.kept("thing.txt", lambda path: path.write_text(text))


def test_what_is_kept_is_made_once_and_is_the_users_alone(home):
    path = thing()
    assert path.parent == home
    assert path.read_text() == "content"
    assert thing("other") == path
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*home.iterdir()] == [path]


def cut(path, aside):
    path.write_text("cont")


def changed(path, aside):
    path.write_text("CONTENT")


def shared(path, aside):
    path.chmod(0o666)


def link(path, aside):
    path.rename(aside)
    path.symlink_to(aside)


def pipe(path, aside):
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize("harm", [cut, changed, shared, link, pipe])
def test_what_is_not_whole_or_could_be_of_another_is_made_anew(home, tmp_path, harm):
    path = thing()
    harm(path, tmp_path / "aside")
    assert thing().read_text() == "content"
    assert [each.is_file() and not each.is_symlink() for each in home.iterdir()] == [True]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_to_which_others_may_write_is_not_used(home):
    home.mkdir()
    for mode in (0o770, 0o707):
        home.chmod(mode)
        cache._trusted.cache_clear()
        with pytest.warns(UserWarning, match=r"is not used, because other users can write to it; .*DDPM_CACHE"):
            path = thing()
        assert path.read_text() == "content"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [*home.iterdir()] == []


def test_a_folder_of_another_user_or_a_link_there_is_not_used(home, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    home.symlink_to(tmp_path / "mine")
    assert thing().parent == home  # a link of the user's own
    theirs = home.lstat()
    monkeypatch.setattr(Path, "lstat", lambda path: os.stat_result([*theirs[:4], theirs.st_uid + 1, *theirs[5:]]))
    cache._trusted.cache_clear()
    with pytest.warns(UserWarning, match="is not used, because it belongs to another user; "):
        assert thing().parent != home


def test_without_a_home_the_cache_lies_in_that_of_the_account_or_among_temporary_files(tmp_path, monkeypatch):
    monkeypatch.delenv("DDPM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache, "_trusted", lambda path: path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache/ddpm"
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache.folder() == tmp_path / ".cache/ddpm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg/ddpm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    account = cache.pwd.getpwuid(os.geteuid()).pw_dir
    for home in ("", None):
        monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
        assert cache.folder() == Path(account) / ".cache/ddpm"

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(cache.pwd, "getpwuid", unknown)
    assert cache.folder() == Path(tempfile.gettempdir()) / f"ddpm-{os.geteuid()}"


def test_what_a_killed_process_was_making_goes_when_the_next_thing_is_made(home):
    process = subprocess.Popen([sys.executable, "-c", MAKER, cache.__file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "making\n"
    thing("of another process meanwhile")
    assert len([*home.glob(".making_*/of_the_compiler")]) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    cache.kept("other.txt", lambda path: path.write_text(""))
    assert sorted(each.name.split("-")[0] for each in home.iterdir()) == ["other", "thing"]


def test_what_cannot_be_made_leaves_nothing(home):
    def full(path):
        path.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        cache.kept("thing.txt", full)
    assert [*home.iterdir()] == []


def test_temporary_files_have_names_that_nobody_can_guess_and_follow_no_link(tmp_path, monkeypatch):
    names = set()
    for _ in range(2):
        with written(tmp_path / "file") as temporary:
            names.add(temporary)
            temporary.write_text("content")
    assert len(names) == 2
    aside = tmp_path / "aside"
    aside.write_text("before")
    next(iter(names)).symlink_to(aside)
    monkeypatch.setattr("secrets.randbelow", lambda n: next(iter(names)).suffix[1:])
    with pytest.raises(FileExistsError), written(tmp_path / "file") as temporary:
        temporary.write_text("content")
    assert aside.read_text() == "before"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """(shell commands, word) -> a compiler that runs them with $out, and is called by two words."""

    def made(commands):
        script = tmp_path / "compiler with spaces"
        script.write_text(f"#!/bin/sh\nfor out; do :; done\n{commands}\n")  # the last argument
        script.chmod(0o700)
        monkeypatch.setenv("CXX", f"env '{script}'")

    return made


def test_a_compiler_may_be_several_words_and_leaves_nothing_but_the_library(home, compiler):
    compiled = Path(torch._C.__file__)  # any library
    compiler(f'echo >"$TMPDIR/left"; cp "{compiled}" "$out"')
    assert native.library.__wrapped__() is not None
    (path,) = home.iterdir()
    assert path.read_bytes() == compiled.read_bytes()


def test_a_compiler_that_hangs_is_given_up_with_what_it_started(home, tmp_path, compiler, monkeypatch):
    os.mkfifo(tmp_path / "held")
    compiler(f'sleep 1000 <>"{tmp_path}/held" & wait')
    monkeypatch.setattr(native, "LIMIT", 0.5)
    with pytest.warns(
        UserWarning, match=r"could not be compiled; using PyTorch's instead: .*timed out after 0.5 seconds"
    ):
        assert native.library.__wrapped__() is None
    assert [*home.iterdir()] == []
    while is_held(tmp_path / "held"):  # until it is gone too
        time.sleep(0.01)


def is_held(pipe):
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("commands", ["true", 'echo garbage >"$out"', "printf 'error: \\377' >&2; exit 1"])
def test_a_compiler_that_makes_no_library_is_said_in_one_line(compiler, commands):
    compiler(commands)
    with pytest.warns(UserWarning, match="could not be compiled; using PyTorch's instead: ") as said:
        assert native.library.__wrapped__() is None
    assert len(said) == 1
    assert len(str(said[0].message).splitlines()) == 1


def test_a_command_that_cannot_be_split_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "g++ 'unclosed")
    with pytest.warns(UserWarning, match="could not be compiled; using PyTorch's instead: No closing quotation"):
        assert native.library.__wrapped__() is None
