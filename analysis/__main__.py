"""`python -m analysis fit|report`: the analysis commands without the rest of the suite."""

from analysis.cli.fit import main

main()
