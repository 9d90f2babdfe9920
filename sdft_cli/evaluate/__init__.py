"""What was learned: likelihood, divergence, and tool calls, base against tuned."""
