"""What a model is: its bundle, its layer line, its pictures and prompts, and how its next token is chosen."""

from cutline.core.telemetry import switch_off

switch_off()  # before anything here imports ONNX Runtime
