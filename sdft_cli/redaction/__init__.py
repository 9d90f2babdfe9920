"""Secrets and personal names out of sessions and files.

redactor      what is found becomes a pseudonym, the same for the same value, before tokens are counted
rules         what is looked for: secrets by shape and context, e-mail addresses, user names in paths
known_values  what is personal on this machine, and the key of the pseudonyms
rewrite       every text of a session, rewritten by a function
files         files searched in the same way and left as they are (before a push)
"""
