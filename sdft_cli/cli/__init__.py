"""One thin file per command: parse, build a configuration, call one function, render. No torch at import time.

main        the `sdft` command
options     options and their help: settings described by the configuration, defaults, groups
common      errors -> one sentence and an exit code; the newest dataset or run
prepare     `sdft prepare`
plan        `sdft plan` and `sdft doctor`
gate        `sdft gate`
train       `sdft train`
merge       `sdft merge`
push        `sdft merge --push`
model_card  the card that merge and eval write
evaluate    `sdft eval`
compare     `sdft compare`
report      `sdft report`
export      `sdft export`
demo        `sdft demo`
cards       `sdft cards`
"""
