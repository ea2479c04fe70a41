"""Train a denoising diffusion probabilistic model: python train.py --help"""

import hydra
from omegaconf import DictConfig

from ddpm import cli, config, run_folder

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@cli.job
def main(cfg: DictConfig) -> None:
    cli.check(cfg)
    with run_folder.claimed(cfg) as job:
        cli.lead("train", job)


if __name__ == "__main__":
    cli.start("train", main)
