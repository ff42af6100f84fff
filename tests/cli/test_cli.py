"""The command line: what it prints, what it writes, and how it ends."""

import io
import json
import typing

import pytest
import torch
from safetensors.torch import save_file

import sdtree as sd
from sdtree.__main__ import main


def state():
    """Return a training state with a tie, int keys, a tuple and plain values."""
    w = torch.arange(12.0).view(3, 4)
    model = {
        "embedding.weight": w,
        "norm.num_batches_tracked": torch.tensor(5),
        "norm.weight": torch.ones(4),
        "head.weight": w,
    }
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(3, 4)}}}
    return {"model": model, "optimizer": optimizer, "betas": (0.9, 0.999)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a fresh folder that holds ``a.pt``."""
    monkeypatch.chdir(tmp_path)
    sd.save(state(), "a.pt")
    return tmp_path


@pytest.fixture
def sdtree(folder, capsys):
    """Return what runs a command line: its exit code, stdout and stderr."""

    def run(*words):
        code = main(words)
        return code, *capsys.readouterr()

    return run


# -- show --------------------------------------------------------------------------


def columns(out):
    """Return the cells of lines for ``cut``."""
    return [line.split("\t") for line in out.splitlines()]


def test_show_prints_a_line_for_each_leaf(sdtree):
    """In a pipe: what JSON has of it, between tabs, and nothing else."""
    code, out, err = sdtree("show", "a.pt")
    assert (code, err) == (0, "")
    leaves = sd.show(state()).to_data()["leaves"]
    assert [cells[0] for cells in columns(out)] == [leaf["name"] for leaf in leaves]
    assert columns(out)[0] == [
        *("model.embedding.weight", "Tensor", "(3, 4)", "float32", "12", "48", "1")
    ]
    assert columns(out)[-1] == ["betas.1", "float", "0.999"]


def test_show_of_several_tells_which(sdtree, folder):
    """The path comes first, as ``grep`` has it; of a shard its file comes last."""
    sd.save({"w": torch.ones(2)}, "b.safetensors")
    code, out, _ = sdtree("show", "a.pt", "b.safetensors", "--select", "**.weight")
    assert code == 0
    assert [cells[0] for cells in columns(out)] == ["a.pt"] * 3
    code, out, _ = sdtree("show", "a.pt", "b.safetensors", "--json")
    assert [each["file"] for each in json.loads(out)] == ["a.pt", "b.safetensors"]
    code, out, _ = sdtree("show", "a.pt", "b.safetensors", "--totals")
    assert out.index("a.pt\n") < out.index("b.safetensors\n")


def test_show_by_depth_and_by_size(sdtree):
    """Each prefix in a line; the largest first; the sum is what the totals say."""
    _, out, _ = sdtree("show", "a.pt", "--depth", "1", "--sort", "bytes")
    found = columns(out)
    assert [cells[0] for cells in found] == ["model.**", "optimizer.**", "betas.**"]
    totals = json.loads(sdtree("show", "a.pt", "--json", "--depth", "1")[1])["prefixes"]
    assert {cells[0][:-3]: (int(cells[4]), int(cells[5])) for cells in found} == {
        each["prefix"]: (each["parameters"], each["bytes"]) for each in totals
    }
    _, out, _ = sdtree("show", "a.pt", "--sort", "parameters", "--drop", "betas.*")
    counts = [int(([*cells, ""][4:5] or [0])[0] or 0) for cells in columns(out)]
    assert counts == sorted(counts, reverse=True)


def test_a_select_that_matches_nothing_is_an_error(sdtree, folder):
    """Of several checkpoints, where it matches in none; else that is noted."""
    sd.save({"w": torch.ones(2)}, "b.pt")
    told = "--select 'modl.**' matches no leaf; no 'modl' in the names, where"
    for words in (["show"], ["show", "--json"], ["diff", "b.pt"]):
        code, out, err = sdtree(*words, "a.pt", "--select", "modl.**", "--select", "w")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert told in err
    code, _, err = sdtree("show", "a.pt", "b.pt", "--select", "w")
    assert (code, err.count("note: --select 'w' matches no leaf")) == (0, 1)


def test_show_keeps_to_what_is_selected(sdtree):
    code, out, err = sdtree(
        "show", "a.pt", "--select", "model.**", "--drop", "**.norm.*"
    )
    assert (code, err) == (0, "")
    assert "embedding.weight" in out
    assert "norm" not in out
    assert "optimizer" not in out


def test_show_totals_leaves_out_the_leaves(sdtree):
    code, out, _ = sdtree("show", "a.pt", "--totals", "--depth", "2")
    assert code == 0
    assert "float32" in out
    assert "exp_avg" not in out
    assert "optimizer.state" in out


def test_show_json_is_json_and_nothing_else(sdtree):
    code, out, err = sdtree("show", "a.pt", "--json", "--drop", "nix.**")
    assert code == 0
    assert len(json.loads(out)["leaves"]) == 8
    assert err.startswith("note: --drop 'nix.**' matches no leaf; no 'nix' in the")
    data = json.loads(sdtree("show", "a.pt", "--json")[1])
    assert data["file"] == "a.pt"
    assert data["leaves"] == sd.show(state()).to_data()["leaves"]


def test_show_tells_of_an_old_file(sdtree, folder):
    torch.save(state(), "old.pt", _use_new_zipfile_serialization=False)
    code, out, err = sdtree("show", "old.pt")
    assert (code, out) == sdtree("show", "a.pt")[:2]
    assert err.startswith("note: ")
    assert "read whole" in err


# -- convert -----------------------------------------------------------------------


def test_convert_is_the_transform(sdtree):
    """The example of the help, and the same in Python."""
    code, out, _ = sdtree(
        *("convert", "a.pt", "b.safetensors", "--select", "model.**"),
        *("--drop", "**.num_batches_tracked", "--cast", "bfloat16"),
        *("--rename", "model.head.**=head.**"),
    )
    transform = (
        sd.select("model.**")
        | sd.drop("**.num_batches_tracked")
        | sd.cast(dtype=torch.bfloat16)
        | sd.rename(("model.head.**", "head.**"))
    )
    assert (code, out) == (0, "")
    assert not sd.diff(sd.load("b.safetensors"), transform(state()))
    assert len(sd.ties(sd.load("b.safetensors"))) == 1


def test_convert_writes_every_name_where_they_are_kept(sdtree):
    from safetensors.torch import load_file

    [tie] = [[".".join(path) for path in tie] for tie in sd.ties(state())]
    for options, count in ((), 1), (("--keep-names",), len(tie)):
        assert sdtree("convert", "a.pt", "b.safetensors", *options)[0] == 0
        found = load_file("b.safetensors")
        assert sum(name in found for name in tie) == count
        assert len(sd.ties(sd.load("b.safetensors"))) == 1


@pytest.mark.parametrize("name", ["a.pt", "./a.pt", "link.pt", "hard.pt"])
def test_convert_onto_its_source_is_safe(sdtree, folder, name):
    (folder / "link.pt").symlink_to("a.pt")
    (folder / "hard.pt").hardlink_to("a.pt")
    code, _, _ = sdtree("convert", "a.pt", name, "--cast", "float16")
    assert code == 0
    assert not sd.diff(sd.load(name), sd.cast(state(), dtype=torch.float16))


def test_convert_notes_what_matches_nothing(sdtree):
    code, _, err = sdtree("convert", "a.pt", "b.pt", "--drop", "x.**")
    assert code == 0
    assert err.startswith("note: --drop 'x.**' matches no leaf; no 'x' in the names")
    assert not sd.diff(sd.load("b.pt"), state())


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--rename", "modl.**=net.**"), "--rename 'modl.**'"),
        (("--rename", "model.**=x.**", "--rename", "y=z"), "--rename 'y'"),
        (("--strip-prefix", "modle"), "--strip-prefix 'modle.**'"),
    ],
)
def test_convert_of_names_that_are_not_there_is_an_error(sdtree, folder, option, told):
    """A file of the old names would be taken for one of the new."""
    code, out, err = sdtree("convert", "a.pt", "b.pt", *option)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {told} matches no leaf; no ")
    assert "nothing was written" in err
    assert not (folder / "b.pt").exists()


def test_convert_to_nothing_is_an_error(sdtree, folder):
    code, out, err = sdtree("convert", "a.pt", "b.pt", "--select", "modl.**")
    assert (code, out) == (2, "")
    assert err == (
        "error: nothing is left of a.pt; --select 'modl.**' matches no leaf; "
        "no 'modl' in the names, where there is 'model'\n"
    )
    assert not (folder / "b.pt").exists()


def test_convert_renames_inside_a_nested_checkpoint(sdtree):
    """The most common job: what wrapped the model leaves the keys of its state dict."""
    model = {"module.fc.weight": torch.ones(2), "module.fc.bias": torch.zeros(2)}
    torch.save({"epoch": 90, "state_dict": model}, "ddp.pt")
    rule = "state_dict.module.**=state_dict.**"
    code, _, err = sdtree("convert", "ddp.pt", "plain.pt", "--rename", rule)
    assert (code, err) == (0, "")
    plain = {key.removeprefix("module."): t for key, t in model.items()}
    assert not sd.diff(sd.load("plain.pt"), {"epoch": 90, "state_dict": plain})


def test_convert_merging_two_leaves_writes_nothing(sdtree, folder):
    rule = "model.*.weight=model.weight"
    code, _, err = sdtree("convert", "a.pt", "b.pt", "--rename", rule)
    assert code == 2
    assert "model" in err
    assert sorted(path.name for path in folder.iterdir()) == ["a.pt"]


def test_a_dry_run_tells_the_plan_and_writes_nothing(sdtree, folder):
    words = ("convert", "a.pt", "b.ckpt", "--select", "model.**", "--cast", "half")
    code, out, err = sdtree(*words, "--dry-run")
    transform = sd.select("model.**") | sd.cast(dtype=torch.half)
    plan = sd.explain(transform, sd.load("a.pt"))
    assert (code, err) == (0, "")
    assert out == f"{plan}\n4 leaves left out: optimizer (2), betas (2)\n"
    assert [path.name for path in folder.iterdir()] == ["a.pt"]
    assert sdtree(*words)[0] == 0
    assert sd.equal(sd.load("b.ckpt"), transform(sd.load("a.pt")))


@pytest.fixture
def piped_in(folder, monkeypatch):
    """Have ``a.pt`` come from stdin."""

    def pipe(data):
        stdin = io.TextIOWrapper(io.BytesIO(data))
        monkeypatch.setattr("sys.stdin", stdin)

    pipe((folder / "a.pt").read_bytes())
    return pipe


@pytest.mark.parametrize("words", ["show -", "diff a.pt -", "convert - b.pt"])
def test_stdin_is_a_checkpoint(sdtree, folder, piped_in, words):
    assert sdtree(*words.split(), *["--values"] * ("diff" in words))[0] == 0
    if "convert" in words:
        assert sd.equal(sd.load("b.pt"), state())
    piped_in(b"no checkpoint")
    code, out, err = sdtree(*words.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "error: -: " in err
    assert "/tmp" not in err


# -- diff --------------------------------------------------------------------------


def test_diff_of_equal_files_is_0(sdtree):
    sdtree("convert", "a.pt", "b.safetensors")
    assert sdtree("diff", "a.pt", "b.safetensors", "--values") == (
        *(0, "no differences\n"),
        "",
    )
    assert sdtree("diff", "a.pt", "b.safetensors", "--json")[:2] == (0, "[]\n")


def test_diff_without_values_compares_all_else(sdtree):
    other = sd.map(lambda x: x + 1 if isinstance(x, torch.Tensor) else x, state())
    sd.save(other, "b.pt")
    code, out, err = sdtree("diff", "a.pt", "b.pt")
    assert code == 0
    assert out == "no differences, but the data of 5 leaves was not compared\n"
    assert err == "note: the data of 5 leaves was not compared; --values compares it\n"
    code, out, _ = sdtree("diff", "a.pt", "b.pt", "--values")
    assert code == 1
    assert "12 of 12 elements differ  by at most 1" in out
    code, out, _ = sdtree("diff", "a.pt", "b.pt", "--values", "--select", "betas.*")
    assert code == 0


def test_diff_compares_plain_values_in_any_case(sdtree):
    """Step 1 and step 3 are not the same checkpoint."""
    sd.save({"step": 1}, "one.pt")
    sd.save({"step": 3}, "three.pt")
    code, out, err = sdtree("diff", "one.pt", "three.pt")
    assert (code, err) == (1, "")
    assert "int 1" in out
    assert "int 3" in out
    assert sdtree("diff", "one.pt", "one.pt") == (0, "no differences\n", "")


def test_diff_prints_what_sd_diff_does(sdtree):
    sd.save(sd.cast(state(), dtype=torch.float16), "b.pt")
    found = sd.diff(state(), sd.load("b.pt"), values=False)
    code, out, err = sdtree("diff", "a.pt", "b.pt")
    assert (code, f"{out}{found.left_out()}\n") == (1, f"{found}\n")
    assert err == f"note: {found.left_out()}; --values compares it\n"
    code, out, _ = sdtree("diff", "a.pt", "b.pt", "--json")
    assert (code, json.loads(out)) == (1, json.loads(found.to_json()))


def moved(x):
    """Return a leaf that is a little further, if it is a tensor of floats."""
    is_float = isinstance(x, torch.Tensor) and x.is_floating_point()
    return x + 0.5 if is_float else x


@pytest.fixture
def moved_to(folder):
    """Return the difference of ``a.pt`` and of ``b.pt``, which is written."""
    sd.save(sd.map(moved, state()), "b.pt")
    return sd.diff(sd.load("a.pt"), sd.load("b.pt"))


def test_diff_by_numbers(sdtree, moved_to):
    """The largest first, as many as are asked for; that there are others is noted."""
    code, out, err = sdtree("diff", "a.pt", "b.pt", "--top", "2", "--sort", "rel")
    titles, *lines = out.splitlines()
    told = "note: 2 more differences, which --top leaves out\n"
    assert (code, err, len(lines)) == (1, told, 2)
    assert titles.split() == [
        *("name", "differs", "in", "elements", "max", "norm", "rel")
    ]
    want = [".".join(map(str, d.path)) for d in moved_to.top(2, "rel")]
    assert [line.split()[0] for line in lines] == want
    rows = json.loads(sdtree("diff", "a.pt", "b.pt", "--sort", "rel", "--json")[1])
    assert [row["norm"] for row in rows] == [d.norm for d in moved_to.sorted("rel")]


def test_diff_stat_is_that_of_python(sdtree, moved_to):
    for words, depth in ((), 1), (("--depth", "2"), 2):
        code, out, _ = sdtree("diff", "a.pt", "b.pt", "--stat", "--json", *words)
        found = moved_to.stat(depth)
        assert (code, json.loads(out)) == (1, [stat.to_data() for stat in found])
        lines = sdtree("diff", "a.pt", "b.pt", "--stat", *words)[1].splitlines()
        assert [line.split()[0] for line in lines[1:]] == [stat.label for stat in found]


def test_diff_stat_by_size_sums_all_that_differs(sdtree, moved_to):
    """The largest branches first, so many of them, and the total is that of all."""
    words = ("diff", "a.pt", "b.pt", "--stat", "--depth", "2", "--json")
    *every, total = json.loads(sdtree(*words)[1])
    assert total["changed"] > 1
    for more, by in (("--sort", "rel"), "rel"), (("--top", "2"), "norm"):
        *found, last = json.loads(sdtree(*words, *more)[1])
        expected = sorted(every, key=lambda stat: -stat[by])
        assert found == expected[: 2 if by == "norm" else None]
        assert last == total


def test_diff_within_a_tolerance_is_0_and_told(sdtree, moved_to):
    """The exit code is by it; what is close is not called equal."""
    close, none = "4 leaves differ within the tolerance", ("--rtol", "1e-9")
    code, out, _ = sdtree("diff", "a.pt", "b.pt", "--atol", "0.5")
    assert (code, out) == (0, f"no differences, but {close}\n")
    assert sdtree("diff", "a.pt", "b.pt", *none)[0] == 1
    code, _, err = sdtree("diff", "a.pt", "b.pt", "--atol", "-1")
    assert (code, err.count("\n")) == (2, 1)
    assert sdtree("diff", "a.pt", "b.pt", "--depth", "2")[0] == 2


def test_diff_tells_a_rename_as_one(sdtree, folder):
    sd.save(sd.rename(state(), ("model.norm.weight", "model.ln.weight")), "b.pt")
    code, out, _ = sdtree("diff", "a.pt", "b.pt", "--values")
    assert code == 1
    assert out.splitlines()[1].split() == [
        *("model.norm.weight", "name", "model.norm.weight", "model.ln.weight")
    ]


def test_diff_tells_once_what_goes_for_both(sdtree):
    code, _, err = sdtree("diff", "a.pt", "a.pt", "--values", "--drop", "nope")
    assert code == 0
    assert err.count("--drop 'nope' matches no leaf") == 1


def test_what_other_software_wrote_beside_is_told(sdtree):
    """It is shown, and kept; where there is no room for it, that is told."""
    metadata = {"format": "pt", "step": "3", "ss_tag": "{}"}
    save_file({"w": torch.ones(2)}, "other.safetensors", metadata=metadata)
    code, out, err = sdtree("show", "other.safetensors")
    line = "w\tTensor\t(2,)\tfloat32\t2\t8\n"
    told = "note: 2 texts beside the tensors, told by --totals or --json: ss_tag, step"
    assert (code, out, err) == (0, line, f"{told}\n")
    table = "metadata  text\nss_tag    {}\nstep      3"
    assert sdtree("show", "other.safetensors", "--totals")[1].endswith(f"\n{table}\n")
    data = json.loads(sdtree("show", "other.safetensors", "--json")[1])
    assert data["metadata"] == metadata
    assert sdtree("convert", "other.safetensors", "b.safetensors") == (0, "", "")
    assert sd.metadata("b.safetensors") == metadata
    told = "note: left out, for a .pt file has no room for metadata: ss_tag, step\n"
    assert sdtree("convert", "other.safetensors", "b.pt") == (0, "", told)
    sd.save({"w": torch.ones(2)}, "ours.safetensors")
    assert sdtree("show", "ours.safetensors") == (0, line, "")
    told = "note: their metadata, which is no part of the trees, differs\n"
    assert sdtree("diff", "ours.safetensors", "other.safetensors")[2].startswith(told)
    assert told not in sdtree("diff", "other.safetensors", "b.safetensors")[2]


def test_diff_notes_where_only_the_nesting_differs(sdtree):
    sd.save(sd.flatten(state()), "flat.pt")
    code, out, err = sdtree("diff", "a.pt", "flat.pt")
    assert code == 1
    assert "embedding.weight" in out
    assert err.startswith("note: both have the same names, nested otherwise")


# -- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "tells"),
    [
        ("show nix.pt", "nix.pt: No such file or directory"),
        ("show ..", "a directory"),
        ("show broken.safetensors", "broken.safetensors"),
        ("show broken.pt", "broken.pt"),
        ("diff a.pt nix.pt", "nix.pt: No such file or directory"),
        ("convert a.pt b.pt --cast bf16", "near it: bfloat16"),
        ("convert a.pt b.pt --rename model", "is not PATTERN=REPLACEMENT"),
        ("convert a.pt -", "- is stdin"),
        ("diff a.pt a.pt --sort size", "'--sort': 'size' is not one of 'max_abs'"),
        ("convert a.pt b.pt --select **x", "stands for whole segments"),
        ("convert a.pt b.pt --prefix=", "--prefix"),
        ("convert a.pt nix/b.pt", "nix"),
        ("convert a.pt b.xyz", "b.xyz"),
        ("show", "Missing argument 'CHECKPOINT...'; see sdtree show --help"),
        ("show a.pt --depth x", "--depth"),
        ("show a.pt --nope", "--nope"),
        ("shwo", "'shwo'"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(sdtree, folder, words, tells):
    (folder / "broken.safetensors").write_bytes(b"\xff" * 20)
    (folder / "broken.pt").write_bytes((folder / "a.pt").read_bytes()[:700])
    code, out, err = sdtree(*words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert tells in err
    assert not (folder / "b.pt").exists()


def test_a_file_that_would_run_code_is_shown_and_runs_nothing(sdtree, folder):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"w": Evil()}, "evil.pt")
    code, out, err = sdtree("show", "evil.pt")
    assert (code, err) == (0, "note: read without their classes: builtins.print (1)\n")
    assert "run" not in out
    code, out, err = sdtree("convert", "evil.pt", "b.pt")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "w: read without its class" in err


def test_advice_that_is_for_python_is_told_to_be(sdtree, folder, monkeypatch):
    @sd.register_container
    class Own(typing.NamedTuple):
        x: object

    sd.save(Own(1), "own.safetensors")
    monkeypatch.setattr("sdtree.tree.containers._REGISTERED", {})
    code, out, err = sdtree("show", "own.safetensors")
    assert (code, out) == (2, "")
    assert "sd.register_container(" in err
    assert err.endswith(" (what begins with sd. is for Python)\n")


def test_an_error_in_a_rule_shows_where_it_is(sdtree, folder):
    """It has lines of its own, and the mark stands below what is meant."""
    (folder / "rules.json").write_text('[{"source": ["w [a"], "target": ["v [a]"]}]')
    code, _, err = sdtree("convert", "a.pt", "b.pt", "--rules", "rules.json")
    said, rule, mark = err.splitlines()
    assert (code, said[:18], rule) == (2, "error: rules.json:", "    w [a")
    assert rule[mark.index("^") :].startswith("[a")


def test_an_error_is_harmless_text(sdtree):
    code, _, err = sdtree("show", "\x1b[2J\nnix.pt")
    assert (code, err) == (2, "error: \\x1b[2J\\nnix.pt: No such file or directory\n")


def test_a_bug_still_shows_where_it_is(sdtree, monkeypatch):
    def crash(path):
        raise ZeroDivisionError

    monkeypatch.setattr("sdtree.cli.opening.open_file", crash)
    with pytest.raises(ZeroDivisionError):
        sdtree("show", "a.pt")


# -- help --------------------------------------------------------------------------


def test_help_teaches_by_examples(sdtree):
    assert sdtree()[1] == sdtree("--help")[1]
    for words in ([], ["show"], ["convert"], ["diff"], ["demo"]):
        code, out, err = sdtree(*words, "--help")
        assert (code, err) == (0, "")
        assert f"\n    sdtree {' '.join(words)}" in out
        assert all(len(line) <= 80 for line in out.splitlines())


def test_version_is_that_of_the_package(sdtree):
    code, out, _ = sdtree("--version")
    assert code == 0
    assert out.startswith("sdtree 0.")
