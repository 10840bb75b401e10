"""What CI runs, as one command from the checkout: `python -m tools.check`."""
