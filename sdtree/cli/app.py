"""The command line: ``sdtree show``, ``convert``, ``diff`` and ``demo``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from sdtree.cli import console
from sdtree.cli.launched import alone, is_first, launched
from sdtree.cli.recipe import Recipe
from sdtree.errors import NoMatch
from sdtree.io import Opened, convert_file, open_file
from sdtree.io.beside import FORMAT, Metadata
from sdtree.io.foreigners import check_known, without_foreign
from sdtree.io.refusal import in_short
from sdtree.io.writing import left_out
from sdtree.look.listing import show as list_tree
from sdtree.ops.differing import Diff
from sdtree.ops.differing import diff as compare
from sdtree.ops.looking import spec
from sdtree.path import where
from sdtree.text.table import Table
from sdtree.transform.transform import Transform
from sdtree.tree.flattening import leaves, structure
from sdtree.tree.spec import TreeSpec, take
from sdtree.typing import Tree

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A .pt, .pth, .bin or .safetensors file, a folder of shards, or of DCP.",
    ),
]
Select = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Keep only what matches. Repeatable."),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Leave out what matches. Repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.")
    ] = False,
) -> None:
    """Look into checkpoints, convert them and compare them.

    A checkpoint is a tree; each leaf has a name, such as model.layers.0.weight. A GLOB
    over names takes * for one segment, or a part of one, and ** for any number of
    segments. Quote it, or the shell may take it for file names.

    \b
      sdtree show model.pt
      sdtree convert model.pt model.safetensors --cast bfloat16
      sdtree diff model.pt model.safetensors --values
      sdtree demo

    Each command tells more: sdtree convert --help
    """
    if show_version:
        print(f"sdtree {version('sdtree')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def show(
    checkpoint: Checkpoint,
    select: Select = None,
    drop: Drop = None,
    depth: Annotated[
        int, typer.Option(min=1, help="Segments of the prefixes in the totals.")
    ] = 1,
    totals: Annotated[
        bool, typer.Option("--totals", help="Leave out the table of the leaves.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the leaves of a checkpoint, ties and totals.

    No tensor data is read. The totals are by prefix and by kind of leaf. Leaves that
    share memory have the same number under "tie", and count once in every total. Of a
    folder of shards, or their index, the table says in which file each leaf is. What
    other software has written beside the tensors is shown, too.

    \b
      sdtree show model.pt
      sdtree show model.pt --select 'model.**' --drop '**.bias'
      sdtree show model.pt --totals --depth 2
      sdtree show model.pt --json | jq .total.bytes
    """
    opened, tree, notes = _opened(checkpoint, Recipe(select or (), drop or ()))
    for text in notes:
        console.note(text)
    listing = list_tree(tree, depth=depth)
    if opened.files:
        files = [opened.files[path] for path in structure(tree).paths()]
        listing = replace(listing, files=files)
    if as_json:
        about = {"file": str(checkpoint), "format": opened.format}
        beside = {"notes": list(opened.notes), "metadata": dict(opened.metadata)}
        _print_json(about | beside | listing.to_data())
    else:
        console.write(listing.totals() if totals else listing.tables())
        console.write(_beside(opened.metadata), is_first=False)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="What to read.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="What to write; may be IN itself.")
    ],
    select: Select = None,
    drop: Drop = None,
    drop_foreign: Annotated[
        bool,
        typer.Option("--drop-foreign", help="Leave out what is of unknown classes."),
    ] = False,
    rules: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Convert by the rules of a JSON file."),
    ] = None,
    rest: Annotated[
        str,
        typer.Option(
            metavar="refuse|keep|drop", help="What becomes of leaves no rule names."
        ),
    ] = "refuse",
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB=NAME", help="Rename what matches. Repeatable."),
    ] = None,
    strip_prefix: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Take it off where it leads. Repeatable."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(metavar="NAME", help="Put it before every name.")
    ] = None,
    cast: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE", help="Cast what is floating-point, to bfloat16 say."
        ),
    ] = None,
    keep_names: Annotated[
        bool,
        typer.Option("--keep-names", help="Write every name of one tensor."),
    ] = False,
    shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Write OUT as a folder of shards, of 5GB each say."
        ),
    ] = None,
) -> None:
    """Change a checkpoint: its format, parts, names, dtype.

    The suffix of OUT tells the format. With --shard-size it is a folder of .safetensors
    shards and their index, as transformers and others read it; without a suffix it is a
    directory of torch.distributed.checkpoint. IN may be either. Under torchrun the
    ranks write OUT together, each a share of it.

    The options act in the order in which --help lists them: --select and --drop speak
    of the names in IN, --rules of what these leave, --rename of what the rules make.
    In --rename, each star of NAME takes what one of GLOB matched, in order, and the
    first that matches a leaf counts. A rule of --rules is as sd.rule(...).to_json()
    tells it; the file has one or a list of them.

    Tensors stream through: only what is kept is read, and memory holds a window of
    it. OUT takes its place when it is complete, so a failure leaves what was there.

    A .safetensors file has a tensor of several names once, under the first, with a note
    of the others for sdtree; --keep-names writes them all, for other readers. Metadata
    of other software is kept, but for .pt files, which have no room for it.

    A .pt file may hold objects of any class. Those that are not known here are shown,
    but not written: --drop-foreign leaves them out.

    \b
      sdtree convert model.pt model.safetensors
      sdtree convert train.pt model.safetensors --select 'model.**' --cast half
      sdtree convert train.pt folder --select 'model.**' --shard-size 5GB
      torchrun --nproc-per-node 4 -m sdtree convert dcp_dir model.safetensors
      sdtree convert a.pt b.pt --drop 'optimizer.**' --drop '**.running_*'
      sdtree convert a.pt b.pt --rename 'model.encoder.**=encoder.**'
      sdtree convert a.pt b.pt --rename 'layers.*.w=blocks.*.weight'
      sdtree convert ddp.pt model.pt --strip-prefix module --prefix model
      sdtree convert hf_folder model.pt --rules fuse.json --rest keep
    """
    recipe = Recipe(
        *(select or (), drop or (), rename or (), strip_prefix or (), prefix, cast),
        *(rules, rest),
    )
    transform = recipe.transform()
    opened = open_file(source)
    tree = opened.tree
    if drop_foreign:
        opened = replace(opened, tree=without_foreign(tree))
    notes = list(recipe.notes(structure(opened.tree), leaves(spec(opened.tree))))
    if drop_foreign and len(leaves(tree)) == len(leaves(opened.tree)):
        notes.append("--drop-foreign leaves out nothing")
    if leaves(tree) and not leaves(_moved(opened.tree, transform)):
        raise NoMatch("; ".join((f"nothing is left of {source}", *notes)))
    check_known(_moved(opened.tree, transform), advice="--drop-foreign")
    size = _size(shard_size)
    left = left_out(opened, target, size)
    for text in (*opened.notes, *notes, *([left] if left else [])):
        if is_first():
            console.note(text)
    opened = replace(opened, metadata={}) if left else opened
    with (
        launched() as group,
        console.progress(f"writing {target.name}", hidden=not is_first()) as progress,
    ):
        convert_file(
            opened,
            target,
            transform,
            keep_names=keep_names,
            shard_bytes=size,
            on_progress=progress,
            group=group,
        )


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    values: Annotated[
        bool, typer.Option("--values", help="Compare the data too, bit for bit.")
    ] = False,
    select: Select = None,
    drop: Drop = None,
    as_json: AsJson = False,
) -> None:
    """Tell where two checkpoints differ.

    That is in leaves that only one has, containers, kinds, shapes, dtypes and plain
    values, for which no tensor data is read; and with --values in how many elements,
    and by how much. The exit code is 0 if nothing that was compared differs, 1 if
    something does, 2 for an error. What was not compared is told.

    \b
      sdtree diff a.pt b.safetensors
      sdtree diff a.pt b.pt --values --select 'model.**'
      sdtree diff a.pt b.pt --json | jq '.[].name'
    """
    recipe = Recipe(select or (), drop or ())
    (one, here, first), (other, there, second) = _opened(a, recipe), _opened(b, recipe)
    for text in dict.fromkeys((*first, *second)):
        console.note(text)
    if _texts(one.metadata) != _texts(other.metadata):
        console.note("their metadata, which is no part of the trees, differs")
    with console.waiting("comparing"):
        if values:
            here, there = one.loaded(here), other.loaded(there)
        found = compare(here, there, values=values)
    if found and _is_nested_otherwise(structure(here), structure(there)):
        console.note(
            "both have the same names, nested otherwise; in Python, "
            "sd.diff(sd.flatten(a), sd.flatten(b)) compares by name"
        )
    if as_json:
        print(found.to_json())
    elif found:
        console.write([_table(found)])
    else:
        print(found)
    if found.unseen:
        console.note(f"{found.left_out()}; --values compares it")
    raise typer.Exit(1 if found else 0)


@app.command()
def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir", help="Where to write; a new temporary folder if not given."
        ),
    ] = None,
    ranks: Annotated[
        int,
        typer.Option(min=1, help="How many ranks to train on, where none run yet."),
    ] = 2,
) -> None:
    """Play all of it through on a small model.

    A small transformer is trained for some steps; its checkpoint is shown, converted,
    compared and loaded again. Each step tells the command and the lines of Python that
    do it.

    Then it is trained under FSDP2 on several ranks, which are processes on the CPU. Its
    state is gathered and written by one rank, and read and sent to a training that is
    sharded otherwise and goes on with the very same losses; beside it stands how long
    torch's own functions take. Under torchrun its ranks take part, and none is started.

    \b
      sdtree demo
      sdtree demo --dir here --ranks 4
      torchrun --nproc-per-node 2 -m sdtree demo
    """
    from sdtree.demo.play import play

    with alone():  # one rank plays, and commands are no matter of the others
        play(folder, ranks, lambda words: app(words, standalone_mode=False))


def _opened(path: Path, recipe: Recipe) -> tuple[Opened, Tree, Sequence[str]]:
    """Open a checkpoint and choose from it; the notes tell what is worth knowing."""
    opened = open_file(path)
    notes = (*opened.notes, *recipe.notes(structure(opened.tree)))
    return opened, recipe.transform()(opened.tree), notes


def _moved(tree: Tree, transform: Transform) -> Tree:
    """Return the leaves that a transform keeps where it puts them, as they are.

    Of those that it changes there are the forms.
    """
    found, structure = take(tree)
    forms = [replace(form) for form in leaves(spec(tree))]
    known = dict(zip(map(id, forms), found, strict=True))
    kept, order = take(transform(structure.make(forms)))
    return order.make([known.get(id(leaf), leaf) for leaf in kept])


def _is_nested_otherwise(a: TreeSpec, b: TreeSpec) -> bool:
    """Return whether two trees have the same names at different paths."""
    return set(a.names()) == set(b.names()) and set(a.paths()) != set(b.paths())


def _texts(metadata: Metadata) -> Sequence[tuple[str, str]]:
    """Return the metadata that not every file has, in order."""
    return sorted(pair for pair in metadata.items() if pair != (FORMAT, "pt"))


def _beside(metadata: Metadata) -> Iterator[Table]:
    """Yield the table of the metadata, if there is any to speak of."""
    rows = [(name, in_short(text)) for name, text in _texts(metadata)]
    if rows:
        yield Table(("metadata", "text"), rows)


def _size(text: str | None) -> int | str | None:
    """Return the size of a shard; a number alone is one of bytes."""
    return int(text) if text is not None and text.isdecimal() else text


def _table(found: Diff) -> Table:
    rows = [(where(each.path), each.what, each.a, each.b) for each in found]
    return Table(("name", "differs in", "a", "b"), rows)


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=2))
