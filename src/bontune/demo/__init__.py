"""The demonstrations of the command line, and the small base models they begin with."""
