"""What rooms share, each once: a request with its conversation and sampling, and the small tools of several rooms.

The tools: atomic files, sealed JSON, journals of long work, processes that die with their parent, telemetry off.
"""
