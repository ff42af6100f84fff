"""The picture of a checkpoint that README and the site begin with.

``python tests/common/screenshot.py`` draws it: what a terminal shows of a model of the
names and shapes of Llama 3.1 8B, in light and dark, wide and narrow. There is no data
behind it, and none would be read.
"""

import re
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import torch
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme

import sdtree as sd

FOLDER = Path(__file__).parents[2] / "docs" / "_static"
WIDTHS = {"": 114, "-narrow": 55}
"""How many columns a picture has, by what its name ends in."""

DARK = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [
        *((110, 118, 129), (255, 123, 114), (86, 211, 100), (227, 179, 65)),
        *((121, 192, 255), (210, 168, 255), (92, 200, 210), (230, 237, 243)),
    ],
    [
        *((139, 148, 158), (255, 161, 152), (126, 231, 135), (242, 204, 96)),
        *((42, 140, 149), (226, 197, 255), (142, 222, 229), (255, 255, 255)),
    ],
)
LIGHT = TerminalTheme(
    (246, 248, 250),
    (31, 35, 40),
    [
        *((36, 41, 47), (207, 34, 46), (17, 99, 41), (154, 103, 0)),
        *((9, 105, 218), (130, 80, 223), (11, 107, 116), (87, 96, 106)),
    ],
    [
        *((87, 96, 106), (164, 14, 38), (26, 127, 55), (99, 60, 1)),
        *((42, 140, 149), (164, 117, 249), (49, 146, 170), (36, 41, 47)),
    ],
)
THEMES = {"dark": DARK, "light": LIGHT}

FETCHED = re.compile(r"@font-face \{\{.*?\}\}\n", re.DOTALL)
"""What would have a reader fetch a font from elsewhere."""

FONT = "Fira Code, ui-monospace, SFMono-Regular, Menlo, DejaVu Sans Mono, monospace"


def llama() -> dict[str, torch.Tensor]:
    """Return what Llama 3.1 8B has in its files, without data."""
    wide, inner, kv, words = 4096, 14336, 1024, 128256
    shapes = {"model.embed_tokens.weight": (words, wide)}
    for k in range(32):
        shapes |= {
            f"model.layers.{k}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (wide,),
                "mlp.down_proj": (wide, inner),
                "mlp.gate_proj": (inner, wide),
                "mlp.up_proj": (inner, wide),
                "post_attention_layernorm": (wide,),
                "self_attn.k_proj": (kv, wide),
                "self_attn.o_proj": (wide, wide),
                "self_attn.q_proj": (wide, wide),
                "self_attn.v_proj": (kv, wide),
            }.items()
        }
    shapes |= {"model.norm.weight": (wide,), "lm_head.weight": (words, wide)}
    return {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for name, shape in shapes.items()
    }


def pictures() -> Iterator[tuple[str, str]]:
    """Yield the name of each picture, and what is drawn."""
    listing = sd.show(llama())
    for end, width in WIDTHS.items():
        for name, theme in THEMES.items():
            yield f"show{end}-{name}.svg", drawn(listing, width, theme)


def drawn(listing: object, width: int, theme: TerminalTheme) -> str:
    """Return what a terminal of some width shows, as SVG."""
    console = Console(width=width, file=StringIO(), record=True, force_terminal=True)
    console.print(listing)
    form = FETCHED.sub("", CONSOLE_SVG_FORMAT).replace(
        "font-family: Fira Code, monospace", f"font-family: {FONT}"
    )
    title = "$ sdtree show Llama-3.1-8B"
    drawing = console.export_svg(
        title=title, theme=theme, code_format=form, unique_id="sdtree"
    )
    return re.sub(r"[ \t]+$", "", drawing, flags=re.MULTILINE)


TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")


def words_of(drawing: str) -> list[str]:
    """Return what is to be read in a picture."""
    return TEXT.findall(drawing)


if __name__ == "__main__":
    for file, picture in pictures():
        (FOLDER / file).write_text(picture)
        print(FOLDER / file, file=sys.stderr)
