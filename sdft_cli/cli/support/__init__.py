"""What all commands need.

options  options and their help: settings described by the configuration, defaults, groups
common   errors -> one sentence and an exit code
"""
