"""What was learned and what was forgotten: models against each other on the same items, with intervals.

evaluation  `sdft eval` as a function: every model on the same records and prompts
contenders  which models, loaded one after the other
metrics     every number: how an item counts, its mean, and paired differences
answers     an answer against the expert's turn
leaks       copies of the reference, and paths out of nowhere
forgetting  drift from the base on general prompts, and questions
harness     tasks of lm-evaluation-harness
compare     `sdft compare`: evaluations of several runs side by side
"""
