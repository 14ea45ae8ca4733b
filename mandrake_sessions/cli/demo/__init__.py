"""``demo``: the library's main job on display, and checked by a process that was not there."""
