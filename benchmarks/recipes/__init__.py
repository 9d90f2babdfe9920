"""Which recipe makes self-distillation learn: wordings, divergences, additions; against SFT, skill against forgetting.

recipes   what is tried: settings of training and evaluation, by name
data      the datasets of each setting
runs      training and evaluation of a recipe, which go on where they were left
tables    means over seeds, intervals over sessions, tables and the plot
ranking   is the gate's ranking of wordings that of results?
"""
