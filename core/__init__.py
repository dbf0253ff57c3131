"""What rooms share, each once: a request with its conversation and sampling, and the small tools of several rooms.

Those are whole files, seals, journals of long work, tied processes, libraries kept quiet.
"""
