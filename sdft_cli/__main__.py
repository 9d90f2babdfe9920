"""`python -m sdft_cli`."""

from sdft_cli.cli.main import app

app()
