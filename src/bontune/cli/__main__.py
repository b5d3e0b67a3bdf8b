"""`python -m bontune.cli`, for launchers that start a module."""

from bontune.cli import main

main()
