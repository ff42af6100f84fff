"""How many parameters each layer has."""

from collections import Counter

import sdtree as sd

model = sd.load("model.safetensors", mmap=True)

layers = Counter()
for name, x in sd.flatten(model).items():
    layers[".".join(name.split(".")[:3])] += x.numel()
