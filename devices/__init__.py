"""Devices and links: profiles, the resources of this machine, measurements, and an emulator of links."""

from cutline.core.telemetry import switch_off

switch_off()  # before anything here imports ONNX Runtime
