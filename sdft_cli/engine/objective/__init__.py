"""What is minimised: which turns, which tokens, which divergence.

batches        which records each step trains on, in which order, and on whose answers
schedules      what changes with the step: the learning rate, the share of the student's own rollouts, their cap
looks          which steps are looked at closely: the sampler's gap, rollouts that are saved
formula        what is minimised, in plain torch: token weights, divergences, the loss
weights        token weights that depend on what student and teacher think of the tokens
importance     weights of rollouts that an older student sampled
loss           the same in chunks of logits, with its gradient
"""
