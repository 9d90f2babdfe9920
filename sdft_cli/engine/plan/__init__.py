"""What a run will need, predicted, and what its passes really compute.

plan         `sdft plan`: memory, operations, hours and lost records from a config alone
memory       peak memory of a step, by part and phase
flops        operations of a step, in closed form
work         operations of the passes that ran, from their token ids
model_shape  sizes of a model and its adapter, counted without weights
"""
