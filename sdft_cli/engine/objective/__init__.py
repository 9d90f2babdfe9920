"""What is minimised: which turns, which tokens, which divergence.

batches        which records each step trains on, and in which order
token_weights  which tokens of a trajectory count, and how much
formula        what is minimised, in plain torch: the divergences and the loss
loss           the same in chunks of logits, with its gradient
"""
