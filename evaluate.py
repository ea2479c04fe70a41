"""Evaluate a checkpoint: python evaluate.py --help"""

from ddpm.commands import cli

if __name__ == "__main__":
    cli.run("evaluate")
