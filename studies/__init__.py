"""Studies: what was measured with bontune, and the commands that measure it again. Not part of the package."""
