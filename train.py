"""Train a denoising diffusion probabilistic model: python train.py --help"""

import hydra
from omegaconf import DictConfig

from ddpm import cli, config

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@cli.explained
def main(cfg: DictConfig) -> None:
    from ddpm.lit.experiment import experiment

    experiment(cfg).run()


if __name__ == "__main__":
    main()
