"""Commands that are shown or documented work when they are pasted into bash and zsh."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ddpm.setup import run_folder
from ddpm.setup.shell import argument, command, shown

ROOT = Path(__file__).parents[2]
NAMES = (
    *("runs/2026-11-25_12-00-00/last.ckpt", "a b", "a  b", "lr=0.1/x", "a,b", "it's", '"x"', "[x]", "{a: b}"),
    *("${x}", "$HOME"),
    *("null", "1.5", "1e5", "true", "~x", "(x)", "choice(1,2)", "!x", "*", "`ls`", "#x", "a;b|c&d", "é", "back\\slash"),
    *("end\\", 'end\\"', "tab\tnew\nline", "-x", "a:b", "<x>", "^x", "%1", "x ", " x"),
)  # fmt: skip
SAFE = re.compile(r"[\w@%+=:,./-]*", re.ASCII)
"""What neither shell gives a meaning, outside of quotes and not at the start of a word."""


def unquoted(line):
    return re.sub(r"'[^']*'|\"[^\"$`\\!]*\"", "", line)


def test_an_argument_that_is_shown_is_the_path_that_it_was_made_of():
    line = " ".join(argument("ckpt", name) for name in NAMES)
    printed = subprocess.run(["bash", "-c", rf"printf '%s\0' {line}"], capture_output=True, check=True).stdout
    words = printed.decode().split("\0")[:-1]
    assert words == shlex.split(line)
    for name, word in zip(NAMES, words, strict=True):
        override = OverridesParser.create().parse_override(word)
        assert not override.is_sweep_override()
        value = override.value()
        assert OmegaConf.create({"ckpt": getattr(value, "text", value)}).ckpt == name
    assert all(SAFE.fullmatch(word) for word in unquoted(line).split())


def test_a_path_that_is_shown_is_one_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shlex.split(shown(tmp_path / "a b=[c]")) == ["a b=[c]"]
    assert shown(tmp_path / "runs/x") == "runs/x"


@pytest.mark.parametrize(
    ("executable", "active", "expected"),
    [
        (".venv/bin/python", False, ".venv/bin/python"),  # after `make train`
        (".venv/bin/python", True, "python"),
        ("my env/bin/python3", False, "'my env/bin/python3'"),
        ("my env/bin/python3", True, "python"),
        ("../elsewhere/bin/python", False, "{tmp}/elsewhere/bin/python"),
    ],
)
def test_a_command_names_the_interpreter_that_runs(tmp_path, monkeypatch, executable, active, expected):
    here = tmp_path / "here"
    for folder in (here / executable, tmp_path / "other" / "bin" / "python"):
        folder.parent.mkdir(parents=True)
        for name in ("python", folder.name):
            (folder.parent / name).touch(0o755)
    (here / "train.py").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", str((here / executable).parent if active else tmp_path / "other" / "bin"))
    monkeypatch.setattr(sys, "executable", str((here / executable).resolve()))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert command("train", argument("ckpt", "a")) == f"{expected.format(tmp=tmp_path)} train.py ckpt=a"
    monkeypatch.setattr(sys, "argv", [f"{here}/train.py"])
    assert command("train").endswith(f" {here}/train.py")  # as it was typed


def test_a_command_of_the_package_names_the_package(tmp_path, monkeypatch):
    bin = tmp_path / "env" / "bin"
    bin.mkdir(parents=True)
    for name in ("ddpm", "python"):
        (bin / name).touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(bin / "python"))
    monkeypatch.setattr(sys, "argv", [str(bin / "ddpm")])
    monkeypatch.setenv("PATH", "/nowhere")
    assert command("evaluate", argument("ckpt", "a")) == "env/bin/ddpm evaluate ckpt=a"
    monkeypatch.setenv("PATH", str(bin))
    assert command("evaluate", argument("ckpt", "a")) == "ddpm evaluate ckpt=a"
    monkeypatch.setattr(sys, "argv", ["/somewhere/ddpm/__main__.py"])
    assert command("sample") == "python -m ddpm sample"


def test_the_advice_of_an_error_can_be_pasted(tmp_path):
    folder = tmp_path / "lr=1 [a]"
    folder.mkdir()
    (folder / "last.ckpt").touch()
    with pytest.raises(ValueError, match="of another run, which would be lost") as refused:
        run_folder.check_free(folder, None)
    advice = re.search(r"resume it with (.*), or choose another", str(refused.value)).group(1)
    (word,) = shlex.split(advice)
    assert OverridesParser.create().parse_override(word).value() == str(folder / "last.ckpt")


def documented():
    """File and line of each command, in indented blocks and in the text."""
    programs = r"(?:\w+=\S+ )?(?:python|ddpm|torchrun|srun|make|pip|source) "
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("conf/*.yaml")]:
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(rf"^ {{4,}}({programs}.*)$|`({programs}[^`]*)`", text, re.MULTILINE):
            yield path.name, " ".join("".join(line).split())


def test_every_documented_command_can_be_pasted():
    parser, commands = OverridesParser.create(), {*documented()}
    assert len(commands) > 50
    for name, line in commands:
        assert all(SAFE.fullmatch(word) for word in unquoted(line).split()), (name, line)
        program, *words = shlex.split(line)
        if any(re.fullmatch(r"(train|evaluate|sample)\.py", word) for word in words) and program != "torchrun":
            parser.parse_overrides([word for word in words if "=" in word and not word.startswith("PYTHONPATH=")])
