"""The ten tensors in which two runs are furthest apart."""

from heapq import nlargest

import sdtree as sd

a, b = sd.load("run_a.safetensors"), sd.load("run_b.safetensors")

far = sd.map(lambda x, y: (x - y).abs().max().item(), a, b)
for name, most in nlargest(10, far.items(), key=lambda pair: pair[1]):
    print(f"{most:.3f}  {name}")
