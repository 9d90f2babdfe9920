"""Several processes that share the work of one run.

launch     whether this process is one of several
share      which rows go to which process
sharding   whether accelerate's configuration asks for a base in shards
layers     the layers of a base in shards, put together when they run
processes  what the processes of a run say to each other, and a single one to nobody
peers      each process watches the others, so that a failed or killed one ends the run
"""
