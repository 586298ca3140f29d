"""`python -m unisci`, which is also what torchrun starts."""

from unisci.jobs.cli import main

main()
