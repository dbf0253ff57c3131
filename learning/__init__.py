"""Learning: a drafter is taught what its target answered, and takes its place only where that made it better."""

from cutline.core.telemetry import switch_off

switch_off()  # before anything here imports a library of Hugging Face
