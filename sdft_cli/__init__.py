"""sdft: recorded coding-agent sessions in, a self-distilled, merged and evaluated open model out."""

__version__ = "0.1.0"
