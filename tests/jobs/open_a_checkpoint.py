"""What a checkpoint holds, and one tensor of it."""

import sdtree as sd

state = sd.load("train.pt")

print(sd.show(state))
print(state["model"]["layers.0.weight"].dtype)
