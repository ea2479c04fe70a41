"""`python -m ddpm train ...` is `ddpm train ...`."""

from ddpm.commands.cli import main

if __name__ == "__main__":
    main()
