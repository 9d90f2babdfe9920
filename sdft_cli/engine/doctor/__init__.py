"""`sdft doctor`: is this machine ready, does the engine compute here what it should, and what is a model to it?

examine    all findings, in order
finding    what a check found: ok, warn or fail, and what to do
machine    packages and their known traps, GPU, memory, disk
model      what a model is to sdft, and what would be refused with which sentence
small      a random model and a tokenizer, so that nothing has to be downloaded
self_test  a loaded model: adapter, loss, tokens, kernels, prefix sharing
"""
