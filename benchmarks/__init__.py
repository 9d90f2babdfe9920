"""Measurements, each one command, run from the root of the repository."""
