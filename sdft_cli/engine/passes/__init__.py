"""Token ids -> hidden states and gradients, or new tokens: several turns in as few passes as they allow.

executors          the turns of a step in passes: padded, packed or depth-first, behind one interface
choose             which of the three a run takes, and what is said about it
sharing_check      is sharing exact on the loaded model, against a floor that is measured on it
start_check        how a model decodes, is that what it scores, which adapted layers get a gradient
padded             the plain one: every turn pays for its whole prompt
packed             each distinct prefix once per pass, as a tree
depth_first        one live path, turns one after the other; also hybrids with recurrent layers
depth_first_order  the order of that walk
live_cache         keys, values and recurrent states of that path, with their gradients
attention          the attention kernels of packed, depth-first and decoding passes
tree_attention     attention of packed passes on a GPU: a tree's mask as blocks, by FlexAttention
decode             answers to many prompts together, with `generate` or in steps of our own
decode_cache       the cache of a decode, which is not copied for every token
decode_steps       decoding in steps of our own: over fixed buffers, which can be replayed, or a growing cache
replay             such a step as a CUDA graph, which is launched at once
timing             seconds of each phase of a step
"""
