"""Exports local Hugging Face folders as bundles. Needs torch, transformers and onnxruntime-genai.

A bundle is flat and always holds `manifest.json`, `tokenizer.json` and `chat_template.jinja`. In addition

    a target has      config.json, *.safetensors: copied from the folder, for transformers
                      image-to-CUT.onnx, image-spans.data: see cutline.models.export.vision
                      decoder.0-to-CUT.onnx, decoder-spans.data: see cutline.models.export.prefixes
                      embeddings.safetensors: as in a drafter
    a drafter has     image-to-decoder.0.onnx, image-spans.data: its vision tower and connector
                      decoder.onnx and decoder.onnx.data: see cutline.models.export.decoder
                      embeddings.safetensors: `embeddings` (vocabulary, width) fp32
"""

from cutline.models.export.make import export_bundle

__all__ = ["export_bundle"]
