"""What all commands need.

options     options and their help: settings described by the configuration, defaults, groups
pager       lines on stdout, in a pager where they need one
common      errors -> one sentence and an exit code; how loud a command is; JSON
completion  what a shell may offer for a word
"""
