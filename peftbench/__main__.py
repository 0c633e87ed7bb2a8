"""`python -m peftbench`."""

from peftbench.cli.app import main

main()
