"""Compare runs in one HTML file: python report.py --help"""

from ddpm.commands import cli

if __name__ == "__main__":
    cli.report()
