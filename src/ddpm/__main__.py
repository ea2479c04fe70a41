"""Entry point of `python -m ddpm`, equivalent to the command `ddpm`."""

from ddpm.commands.cli import main

if __name__ == "__main__":
    main()
