"""Exports dual encoders: see cutline.models.encoders.bundle for what is in their bundles."""

from cutline.models.export.encoders.make import export_encoder

__all__ = ["export_encoder"]
