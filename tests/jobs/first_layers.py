"""The first four layers of a model, and nothing of the others."""

import sdtree as sd

model = sd.load("model.safetensors", mmap=True)

first = sd.select(model, "model.layers.[0-3].**")
sd.save(first, "first.safetensors")
