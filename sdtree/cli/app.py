"""The command line: ``sdtree show``, ``convert``, ``diff`` and ``demo``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import typer

from sdtree.cli import compared, console, shown
from sdtree.cli.compared import Ask, By
from sdtree.cli.converting import Job
from sdtree.cli.launched import alone, is_first
from sdtree.cli.named_rules import rules_named
from sdtree.cli.opening import Look, looks
from sdtree.cli.recipe import Recipe
from sdtree.cli.shown import Order, View
from sdtree.io.hf.splitting import shard_bytes_of
from sdtree.ops.differing import Diff
from sdtree.ops.differing import diff as compare
from sdtree.tree.flattening import structure
from sdtree.tree.spec import TreeSpec

app = typer.Typer(
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CHECKPOINT: Final = (
    "A .pt, .pth, .bin or .safetensors file, a folder of shards, or of DCP; - is stdin."
)
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
    checkpoints: Annotated[
        list[Path],
        typer.Argument(metavar="CHECKPOINT...", help=CHECKPOINT, show_default=False),
    ],
    select: Select = None,
    drop: Drop = None,
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="Levels that are shown; segments in the totals."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Give each leaf a line in a terminal, too.")
    ] = False,
    sort: Annotated[
        Order | None, typer.Option(help="Put first what has most of it.")
    ] = None,
    totals: Annotated[
        bool, typer.Option("--totals", help="Print totals in place of the leaves.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the leaves of checkpoints.

    In a terminal that is a tree, where what repeats stands in one line, and of what has
    no room the largest is opened. --depth opens so many levels, --all everything.

    In a pipe each leaf is a line of tabs between: name, kind, shape or value, dtype,
    parameters, bytes, the number of its tie, and its file, if there are several; with
    --depth so is each prefix. Of several checkpoints the path of each comes first.

    No tensor data is read. Leaves that share memory have the same number of a tie, and
    count once in every total. --totals are by prefix and by kind of leaf. What other
    software has written beside the tensors is shown, too.

    \b
      sdtree show model.pt
      sdtree show model.pt --select 'model.**' --drop '**.bias'
      sdtree show model.pt --totals --depth 2
      sdtree show model.pt --sort bytes | head | cut -f 1,6
      sdtree show model.pt --json | jq .total.bytes
    """
    found = looks(checkpoints, Recipe(select or (), drop or ()))
    listings = [shown.listing_of(look, depth) for look in found]
    if as_json:
        data = [*map(shown.data_of, found, listings)]
        _print_json(data if len(data) > 1 else data[0])
        return
    for i, (look, listing) in enumerate(zip(found, listings, strict=True)):
        lead = str(look.path) if len(found) > 1 else ""
        if lead and (totals or console.is_read()):
            console.head(lead, is_first=not i)
        if totals:
            console.write(listing.totals(), is_first=not lead)
            console.write(shown.beside(look.opened.metadata), is_first=False)
        else:
            shown.print_leaves(look, listing, View(depth, every, sort), lead)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="What to read; - is stdin.")
    ],
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
        str | None,
        typer.Option(
            metavar="FILE|transformers:TYPE",
            help="Convert by the rules of a JSON file, or those of a model type.",
        ),
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and write nothing.")
    ] = False,
) -> None:
    """Change a checkpoint: its format, parts, names, dtype.

    The suffix of OUT tells the format. With --shard-size it is a folder of .safetensors
    shards and their index, as transformers and others read it; without a suffix it is a
    directory of torch.distributed.checkpoint. IN may be either. Under torchrun the
    ranks write OUT together, each a share of it.

    The options act in the order in which --help lists them: --select and --drop speak
    of the names in IN, --rules of what these leave, --rename of what the rules make.
    In --rename, each star of NAME takes what one of GLOB matched, in order, and the
    first that matches a leaf counts. One that matches none is an error, as is a head
    of --strip-prefix that is not there. A rule of --rules is as sd.rule(...).to_json()
    tells it; the file has one or a list of them. The rules of transformers go from the
    files of a model type to its model; its config.json is to be in IN, or beside it.

    Tensors stream through: only what is kept is read, and memory holds a window of
    it. OUT takes its place when it is complete, so a failure leaves what was there.

    A .safetensors file has a tensor of several names once, under the first, with a note
    of the others for sdtree; --keep-names writes them all, for other readers. Metadata
    of other software is kept, but for .pt files, which have no room for it.

    A .pt file may hold objects of any class. Those that are not known here are shown,
    but not written: --drop-foreign leaves them out.

    In a terminal the last line tells what was written, and what was left out.

    \b
      sdtree convert model.pt model.safetensors
      sdtree convert train.pt model.safetensors --select 'model.**' --cast half
      sdtree convert train.pt folder --select 'model.**' --shard-size 5GB
      torchrun --nproc-per-node 4 -m sdtree convert dcp_dir model.safetensors
      sdtree convert a.pt b.pt --drop 'optimizer.**' --drop '**.running_*'
      sdtree convert a.pt b.pt --select 'model.**' --dry-run
      curl -s https://host/model.pt | sdtree convert - model.safetensors
      sdtree convert a.pt b.pt --rename 'model.encoder.**=encoder.**'
      sdtree convert a.pt b.pt --rename 'layers.*.w=blocks.*.weight'
      sdtree convert ddp.pt model.pt --strip-prefix module --prefix model
      sdtree convert hf_folder model.pt --rules fuse.json --rest keep
      sdtree convert hf_folder model.pt --rules transformers:mixtral
    """
    named = None if rules is None else rules_named(rules, source)
    job = Job.of(
        source,
        target,
        Recipe(
            *(select or (), drop or (), rename or (), strip_prefix or (), prefix, cast),
            *(None if named is None else named.rules, rest),
        ),
        drop_foreign=drop_foreign,
        keep_names=keep_names,
        shard_bytes=_size(shard_size),
    )
    if is_first():
        for text in (*(() if named is None else named.notes), *job.notes):
            console.note(text)
    if not dry_run:
        job.run()
    elif is_first():
        print(job.plan())


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    values: Annotated[
        bool, typer.Option("--values", help="Compare the data too, bit for bit.")
    ] = False,
    stat: Annotated[
        bool, typer.Option("--stat", help="Print what changed below each prefix.")
    ] = False,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Segments of the prefixes of --stat.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Print the N largest alone.")
    ] = None,
    sort: Annotated[
        By | None, typer.Option(help="Put the largest first, by one of the numbers.")
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(metavar="X", help="Allow X times abs(b).")
    ] = None,
    atol: Annotated[
        float | None, typer.Option(metavar="X", help="Allow X, for each element.")
    ] = None,
    select: Select = None,
    drop: Drop = None,
    as_json: AsJson = False,
) -> None:
    """Tell where two checkpoints differ.

    That is in leaves that only one has, containers, kinds, shapes, dtypes and plain
    values, for which no tensor data is read; and with --values in how many elements,
    and by how much. The exit code is 0 if nothing that was compared differs, 1 if
    something does, 2 for an error. What was not compared is told.

    --stat, --top, --sort, --rtol and --atol compare the data, too. The norm is that of
    the difference, rel its part of the norm of B. What is unlike has no numbers:
    another shape or dtype, or a leaf that only one has. Within --rtol and --atol, of
    which each is 0 if only the other is given, floating-point numbers do not differ. A
    leaf that stands elsewhere in B, with the same bits, was renamed. With --stat, --top
    and --sort speak of the prefixes.

    \b
      sdtree diff a.pt b.safetensors
      sdtree diff a.pt b.pt --values --select 'model.**'
      sdtree diff a.pt b.pt --stat --depth 2
      sdtree diff a.pt b.pt --top 10 --sort rel
      sdtree diff a.pt b.pt --rtol 1e-3 || echo they differ
      sdtree diff a.pt b.pt --json | jq '.[].name'
    """
    ask = Ask(values, stat, depth, top, sort, rtol, atol)
    if depth is not None and not stat:
        raise ValueError("--depth is that of the prefixes of --stat; give both")
    found = ask.ordered(_compare(looks([a, b], Recipe(select or (), drop or ())), ask))
    if as_json:
        compared.print_json(found, ask)
    else:
        compared.print_found(found, ask)
    for text in compared.notes(found, ask):
        console.note(text)
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


def _compare(pair: Sequence[Look], ask: Ask) -> Diff:
    """Return where two checkpoints differ, and note what is no part of it."""
    (_, one, here, _), (_, other, there, _) = pair
    if shown.texts_of(one.metadata) != shown.texts_of(other.metadata):
        console.note("their metadata, which is no part of the trees, differs")
    if ask.looks_at_data():
        with console.waiting("reading"):
            here, there = one.loaded(here), other.loaded(there)
    with console.progress("comparing") as progress:
        found = compare(
            here,
            there,
            values=ask.looks_at_data(),
            rtol=ask.rtol,
            atol=ask.atol,
            on_progress=progress,
        )
    if found and _is_nested_otherwise(structure(here), structure(there)):
        console.note(
            "both have the same names, nested otherwise; in Python, "
            "sd.diff(sd.flatten(a), sd.flatten(b)) compares by name"
        )
    return found


def _is_nested_otherwise(a: TreeSpec, b: TreeSpec) -> bool:
    """Return whether two trees have the same names at different paths."""
    return set(a.names()) == set(b.names()) and set(a.paths()) != set(b.paths())


def _size(text: str | None) -> int | None:
    """Return the size of a shard; a number alone is one of bytes."""
    if text is None:
        return None
    try:
        return shard_bytes_of(int(text) if text.isdecimal() else text)
    except ValueError as error:
        _, told = str(error).split(": ", 1)
        raise ValueError(f"--shard-size {text}: {told}") from None


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=2))
