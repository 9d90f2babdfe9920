"""One thin file per command: parse, build a configuration, call a stage, render. No torch at import time.

main      the `sdft` command
support/  what all commands need
init      `sdft init`
run       `sdft run`
prepare   `sdft prepare`
plan      `sdft plan` and `sdft doctor`
gate      `sdft gate`
train     `sdft train`
merge     `sdft merge`
evaluate  `sdft eval`
compare   `sdft compare`
chat      `sdft chat`
report    `sdft report`
inspect   `sdft inspect`
export    `sdft export`
demo      `sdft demo`
cards     `sdft cards`
"""
