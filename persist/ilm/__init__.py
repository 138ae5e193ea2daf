"""ILM, intersession layer messaging: messages to other processes and hosts, kept until they have been delivered there.

Import from `persist`, which has all public names.
"""
