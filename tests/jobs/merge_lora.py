"""LoRA's two thin matrices added to the weights that they change."""

import sdtree as sd

base, lora = sd.load("base.safetensors"), sd.load("adapter.safetensors")

down, up = (
    sd.rename(
        sd.select(lora, f"**.lora_{x}.*"), (f"base_model.model.**.lora_{x}.*", "**.*")
    )
    for x in "AB"
)
delta = sd.map(lambda a, b: 2.0 * b @ a, down, up)  # lora_alpha / r
sd.save(
    sd.map_with_path(lambda path, w: w + delta.get(path[-1], 0), base),
    "merged.safetensors",
)
