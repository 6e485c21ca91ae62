"""`python -m distmf` is `distmf`."""

from distmf.cli import main

main(prog_name="distmf")
