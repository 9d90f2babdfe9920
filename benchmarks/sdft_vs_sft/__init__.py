"""SDFT against SFT on the demo's sessions: `python -m benchmarks.sdft_vs_sft`."""
