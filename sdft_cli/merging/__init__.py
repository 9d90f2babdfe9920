"""Adapter -> checkpoint, and the proof that it is the same model.

merge            `sdft merge` as a function: merge, and certify what is on disk
adapter          what an adapter on disk changes, and into what
places           where these parameters stand in the base's files
weights          W + (alpha/r) B A into the base's own files
tensor_file      safetensors read and written piece by piece
tensor_check     is it the base with this adapter added, and nothing else? every tensor, every file
wanted           what each parameter should have become, computed apart from the merge
by_peft          what peft itself makes of one parameter
behaviour_check  does it do what base + adapter does? loaded and run on real prompts
certificate      did a folder pass, and is it still the same files?
push             a certified checkpoint to the Hub
gguf             a GGUF file by the user's llama.cpp, checked
"""
