"""Dual encoders, CLIP and SigLIP: a tower for images and one for texts, whose rows are compared.

    image ── ImageRules ──► pixels ── image tower ──► a row ──┐
                                                              ├── scores ──► probabilities of the texts
    text ── TextTokenizer ──► ids ──── text tower ──► a row ──┘

The image tower is a line of layers, `image → vision.0..n → head`, and can be cut before each of them. What crosses a
cut is a row for every patch.
"""
