"""The directive ``command-line``: what a command says to ``--help``."""

import io
from contextlib import redirect_stdout

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sdtree.__main__ import main


class CommandLine(SphinxDirective):
    """Shows the help of the command that its argument names, ``sdtree`` by default."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        out = io.StringIO()
        with redirect_stdout(out):
            code = main([*self.arguments, "--help"])
        if code:
            raise self.error(
                f"sdtree {' '.join(self.arguments)} --help ended in {code}"
            )
        text = out.getvalue().strip()
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
