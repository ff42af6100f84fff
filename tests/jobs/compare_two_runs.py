"""What differs between two checkpoints, and by how much."""

import sdtree as sd

a, b = sd.load("run_a.safetensors"), sd.load("run_b.safetensors")

print(sd.diff(a, b))
