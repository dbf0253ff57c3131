"""`cutline calibrate`: the questions it asks, whose answers are kept, and what they say of gate and prices."""
