"""A campaign of faults against several machines, one master and two caches, all of them real.

``python -m tests.chaos`` runs it. ``plan`` says what will be done to whom, from a seed alone;
``world`` has the servers, the machines and the ways in which they fail; ``zygote`` runs
commands as processes that can be killed; ``model`` keeps what was answered and judges it;
``campaign`` lets all of them loose on each other; ``report`` tells the figures.
"""
