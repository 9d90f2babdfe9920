"""What a command does behind its options, for the commands, the whole run and the Python API.

folders     where datasets and runs are, if nobody says
proposal    what suits a machine and its sessions, as the text of sdft.yaml
project     sdft.yaml: settings that hold for every command
prepare     sessions -> a dataset folder
plan        what a run will need, before it starts
gate        the gate and the ranking, on a dataset
train       a dataset -> a run folder
merge       an adapter -> a certified checkpoint
push        a certified checkpoint -> the Hub
model_card  the cards of adapters and checkpoints
report      a path -> what `sdft report` shows, and the page of a whole run
whole_run   sessions -> an evaluated model and its page, in one folder
run_manifest  what a whole run did, of what, and what it left
evaluate    a run or a model -> an evaluation
chat        a run or a model -> models that answer
serve       a merged checkpoint -> the command that serves it
"""
