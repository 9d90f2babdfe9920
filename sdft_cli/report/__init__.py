"""Tables, cards and pages: what a person reads.

terminal    tables on the terminal
progress    how far long work is, and the time left
live        a training run while it runs
statistics  the numbers of a dataset
visible     hostile text, made safe for a terminal
told        what the records lack, in sentences
bars        histograms as text
page        a dataset as one HTML page
evaluation  tables of an evaluation
comparison  tables, plot and page of a comparison
cards       the README.md of a dataset and of a merged checkpoint
templates   the templates of pages and cards, and their filters
merge_rows  the rows of a merge certificate
run/        a training run, and an evaluation, as a page and on the terminal
"""
