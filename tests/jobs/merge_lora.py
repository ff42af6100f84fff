"""LoRA's two thin matrices added to the weights that they change."""

import sdtree as sd

base, lora = sd.load("base.safetensors"), sd.load("adapter.safetensors")

down, up = (
    sd.rename(
        sd.select(lora, f"**.lora_{x}.*"), (f"base_model.model.**.lora_{x}.*", "**.*")
    )
    for x in "AB"
)
merged = sd.map(
    lambda w, a, b: (w + 2.0 * b @ a).to(w.dtype),  # lora_alpha / r
    sd.select(base, tuple(sd.names(down))),
    down,
    up,
)
sd.save(sd.combine(merged, sd.drop(base, tuple(sd.names(down)))), "merged.safetensors")
