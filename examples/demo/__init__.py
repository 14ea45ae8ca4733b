"""The library's main job on display, checked by a second process.

``make demo`` runs it, or ``python -m examples.demo`` in the folder of the checkout. It needs the
library with its extra ``cli``, for Rich.
"""
