"""Draw samples from a checkpoint: python sample.py --help"""

from ddpm.commands import cli

if __name__ == "__main__":
    cli.run("sample")
