"""What a run will need, predicted, and what its passes really compute.

plan         `sdft plan`: memory, operations, hours and lost records from a config alone
assumed      backend, sampling weights, kernels and decoding of the run that is planned
cards        cards by name: memory, arithmetic, bandwidth, links
memory       peak memory of a step, by part and phase
remedies     what lowers a peak that does not fit
passes       the passes of a step, from the lengths of its records
launches     kernels that a pass or a step of decoding launches
speed        seconds of passes and of decoding on a card
hours        the work and the hours of a run, with all that comes beside its steps
several      a run on several cards: data parallel, and FSDP2
spread       how the turns of a step are spread over cards
network      what passing data between cards takes
flops        operations of a step, in closed form
work         operations of the passes that ran, from their token ids
model_shape  sizes of a model and its adapter, counted without weights
"""
