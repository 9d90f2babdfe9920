"""What a command does behind its options, for the commands, the whole run and the Python API.

folders     where datasets and runs are, if nobody says
prepare     sessions -> a dataset folder
gate        the gate and the ranking, on a dataset
train       a dataset -> a run folder
merge       an adapter -> a certified checkpoint
push        a certified checkpoint -> the Hub
model_card  the cards of adapters and checkpoints
report      a path -> what `sdft report` shows
evaluate    a run or a model -> an evaluation
"""
