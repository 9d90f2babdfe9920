"""Where sessions come from, and how each agent writes them down: source -> files -> `Session`."""
