"""The library's main job on display, and checked by a process that was not there.

``make demo`` runs it, or ``python -m examples.demo`` in the folder of the checkout. It needs the
library with its extra ``cli``, for Rich.
"""
