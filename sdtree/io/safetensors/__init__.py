"""Files in the format of safetensors."""
