"""The algorithm: models and adapters, rollouts, divergence, the training loop."""
