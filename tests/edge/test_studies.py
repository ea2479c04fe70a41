"""A study trains its cells for several seeds, continues where it was left, and ends in a report."""

import json

import pytest
import typed
import waiting

STUDY = """
# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    cells:
      - {loss: simple}
      - {loss: hybrid, variance: fixed_small}
      - {loss: vlb, variance: learned}
    params:
      seed: 0,1
  sweep:
    dir: runs/studies/mine
"""


@pytest.mark.slow
def test_a_study_of_the_users_own_leaves_a_report_of_its_cells_although_one_cannot_be_trained(bare, tmp_path):
    (tmp_path / "options" / "study").mkdir(parents=True)
    (tmp_path / "options" / "study" / "mine.yaml").write_text(STUDY)
    words = typed.train("--config-dir", "options", "study=mine", *bare, "trainer.max_steps=2")
    done = waiting.run(words, env=typed.environment(), cwd=tmp_path)
    assert done.returncode == 1
    assert "loss=hybrid trains a learned variance" in done.stderr
    folder = tmp_path / "runs" / "studies" / "mine"
    results = [json.loads(path.read_text()) for path in folder.glob("*/results.json")]
    trained = [(each["config"]["loss"]["_target_"].split(".")[2], each["config"]["seed"]) for each in results]
    assert sorted(trained) == [("simple", 0), ("simple", 1), ("vlb", 0), ("vlb", 1)]
    assert "4 finished" in done.stdout
    page = (folder / "report.html").read_text()
    assert "loss=vlb" in page

    again = waiting.run(words, env=typed.environment(), cwd=tmp_path)
    assert again.stdout.count("already finished: ") == 4
