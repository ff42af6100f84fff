"""The names of a model inside a checkpoint of DDP, without ``module.``."""

import sdtree as sd

checkpoint = sd.load("ddp.pt")

plain = sd.rename(checkpoint, ("state_dict.module.**", "state_dict.**"))
sd.save(plain, "plain.pt")
