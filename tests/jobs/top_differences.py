"""The ten tensors in which two runs are furthest apart."""

import sdtree as sd

a, b = sd.load("run_a.safetensors"), sd.load("run_b.safetensors")

print(sd.diff(a, b).top(10, "max_abs"))
