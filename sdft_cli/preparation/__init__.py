"""Sessions -> records, with a funnel that counts everything.

pipeline    `sdft prepare` as a function: source -> sessions -> turns -> dataset
job         what every session goes through, and how many are on their way
workers     sessions tokenised in one process or in several, with the same result
on_ray      the same on the nodes of a Ray cluster
turns       one session -> its turns, each a record or rejected for one of the reasons in records/reasons.py
gathered    what was measured of all sessions, on disk; the records, each once
reasoning   reasoning taken out of contexts and references
parallel    parallel calls taken apart into consecutive ones
system      system prompts, counted and perhaps dropped
coverage    how much of what the model saw the records hold, by the provider's own token counts
duplicates  copies of turns and of sessions, within a split and across it
split       train and validation, by group of sessions
"""
