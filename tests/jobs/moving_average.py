"""The moving average of a model's weights while it trains (EMA)."""

from training import model, steps

import sdtree as sd

ema = sd.copy(model.state_dict())
for _ in steps():
    ema = sd.map(
        lambda old, new: old.lerp(new, 0.1) if new.is_floating_point() else new.clone(),
        ema,
        model.state_dict(),
    )
