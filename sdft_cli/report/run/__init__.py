"""A training run as a person reads it: one page, and a summary on the terminal.

parts    what a run left behind, read for a reader: whatever is missing or damaged is said
summary  a run on the terminal
page     a run, and an evaluation, as one HTML page
curves   numbers by step as inline SVG
autopsy  the tokens of a sample, coloured by their loss, and sums by kind and position
answers  answers to the same records, side by side and from evaluation to evaluation
"""
