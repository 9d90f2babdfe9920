"""Calls in the models' own syntaxes: text of a turn -> prose, calls and failed calls.

turns        a turn taken apart, and the walk over its text that all syntaxes share
find         the table of syntaxes, and which one a chat template writes
hermes       JSON between tags: Hermes, Qwen2 to Qwen3, SmolLM
elements     an element per parameter, nothing escaped: Qwen XML, Seed-OSS, GLM, MiniMax, Muse
json_calls   JSON lists and objects with names in them: Mistral, Command R, Granite, Phi-4, Nemotron, Llama 3
named_json   a name, a separator, JSON: DeepSeek, Kimi, Mistral with [ARGS]
pythonic     name(key=value): Llama, LFM2, OLMo 3
gemma        Gemma 4 and FunctionGemma
harmony      the messages and channels of gpt-oss
json_reader  JSON inside a text, where it ends, and whether the text ends inside it
literals     values as Python or JSON writes them
raw_values   raw text typed by a tool's schema
"""
