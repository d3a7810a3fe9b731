"""The HTTP server: the archive for programs, as ``annoris`` is for people.

It keeps nothing of its own: sessions and tokens are on master, the queue is the outbox, so that
a replica more or less, or one restarted, changes nothing. Only ``tokens`` and ``github`` are
imported without the ``server`` extra.
"""
