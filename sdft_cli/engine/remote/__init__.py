"""Rollouts that are sampled elsewhere, by a server that speaks vLLM's OpenAI-compatible protocol.

client       HTTP: what the server answers, or a sentence that says why it did not
completions  a prompt of token ids -> a request; an answer -> a rollout with log-probabilities
flight       many requests at once, while something else is done
handover     the adapter as it is now -> the server
opening      a configuration -> a server that was looked at
checks       is it a server of this model, with this tokenizer, that takes adapters
sampler      the rollouts of a step, asked for in time or a step ahead, and how stale they are
"""
