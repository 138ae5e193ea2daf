"""Links to processes that share no memory: frames over Unix sockets and TCP, with or without TLS.

Import from `bus`, which has all public names.
"""
