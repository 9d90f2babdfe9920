"""What was learned and what was forgotten: models against each other on the same items, with intervals.

evaluation   `sdft eval` as a function: every model on the same records and prompts
contenders   which models, loaded one after the other
document     eval.json: put together from items, and read back
differences  one model minus another, paired by item, with intervals
forgetting   drift from the base on general prompts, and questions
harness      tasks of lm-evaluation-harness
compare      `sdft compare`: evaluations of several runs side by side
matrix       what is kept of earlier datasets when runs go on from each other
"""
