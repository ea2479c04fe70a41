"""Train a denoising diffusion probabilistic model: python train.py --help"""

from ddpm.commands import cli

if __name__ == "__main__":
    cli.run("train")
