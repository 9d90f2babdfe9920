"""The model: found, loaded by a backend, its adapter on or off.

names                 a folder, a Hub id or an alias -> the folder of a model; what it is and its licence
backend               the interface between the algorithm and the library that runs the model
backend_transformers  transformers and peft
backend_unsloth       unsloth, which may change nothing without being asked
head                  the output head as the model applies it: scale, cap, bias
head_check            whether our logits are those of the model's own forward pass
modes                 dropout, training and eval mode, positions: what must not leak from one pass into the next
limits                what a model's config and tokenizer rule out, before it is loaded
load                  which backend a run takes, what the machine must have, and loading
adapters              LoRA on the language trunk; which weights are on: adapter, base, average, merged
updates               LoRA updates beside base weights in float16, while a CPU decodes
disk_names            which tensors on disk hold a parameter; targets that could not be merged are refused
targets               which modules an adapter sits on, known before weights are loaded
device_memory         free memory, and what to lower when it ran out
interrupts            Ctrl-C and SIGTERM, at once and never inside a change of state
quiet                 other libraries' notices kept off the terminal
"""
