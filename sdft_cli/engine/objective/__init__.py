"""What is minimised: which turns, which tokens, which divergence.

batches        which records each step trains on, and in which order
token_weights  which tokens of a trajectory count, and how much
loss           divergence of student and teacher from hidden states, in chunks, with its gradient
"""
