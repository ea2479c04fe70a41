"""Evaluate a checkpoint: python evaluate.py --help"""

import hydra
from omegaconf import DictConfig

from ddpm import cli, config

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@cli.job
def main(cfg: DictConfig) -> None:
    cli.check(cfg)
    cli.lead("evaluate", cfg)


if __name__ == "__main__":
    cli.start("evaluate", main)
