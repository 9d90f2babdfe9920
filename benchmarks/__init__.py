"""Measurements, one command each: `python -m benchmarks.NAME`. Nothing in `sdft_cli` imports them."""
