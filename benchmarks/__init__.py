"""Measurements, one command each: `python -m benchmarks.NAME`. Nothing in `sdft_cli` imports them."""

from sdft_cli.threads import limit_spinning

limit_spinning()
