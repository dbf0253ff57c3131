"""What devices and links can do: profiles, the cores that a process has, and a link made to happen."""

from cutline.core.telemetry import switch_off

switch_off()  # before anything here imports ONNX Runtime
