"""Bontune inside other trainers. Each module imports its library, so import the one you use: `integrations.trl`."""
