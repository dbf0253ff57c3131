"""The device's side: the drafter on ONNX Runtime, the gate, failover, and the agent that joins them."""

from cutline.core.telemetry import switch_off

switch_off()  # before anything here imports ONNX Runtime
