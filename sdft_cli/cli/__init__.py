"""One thin file per command: parse, build a configuration, call a stage, render. No torch at import time.

main      the `sdft` command
support/  what all commands need
prepare   `sdft prepare`
plan      `sdft plan` and `sdft doctor`
gate      `sdft gate`
train     `sdft train`
merge     `sdft merge`
evaluate  `sdft eval`
compare   `sdft compare`
chat      `sdft chat`
report    `sdft report`
export    `sdft export`
demo      `sdft demo`
cards     `sdft cards`
"""
