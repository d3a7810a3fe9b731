"""A whole Annoris on this machine, to try things on: all tiers real, nothing of it kept.

``place`` says where it lies and brings a command into it, ``world`` starts and ends it.
"""
