"""How many parameters each layer has, and how many bytes."""

import sdtree as sd

model = sd.load("model.safetensors", mmap=True)

for total in sd.show(model, depth=3).prefixes:
    print(f"{total.parameters:>12,}  {total.label}")
