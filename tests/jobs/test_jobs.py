"""What people come for, each a script of three statements at most.

The scripts beside this file stand as they are among the everyday recipes of the docs.
Each runs on files as people have them, and is held to what torch alone makes of these.
"""

import ast
import json
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import pool
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard

import sdtree as sd
from sdtree.__main__ import main
from sdtree.testing import check_leaf

HERE = Path(__file__).parent
JOBS = sorted(
    path for path in HERE.glob("*.py") if path.stem[:5] not in ("test_", "conft")
)
RECIPES = (HERE.parents[1] / "docs" / "howto" / "everyday.md").read_text()
SMALL = "16KB"
"""What a shard may have here, where the models are small."""

State = dict[str, Any]


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_job_takes_three_statements_at_most(job):
    """Beyond a line that says what it is, imports, and what is read."""
    tree = ast.parse(job.read_text())
    assert ast.get_docstring(tree)
    assert 1 <= len([*statements(tree.body[1:])]) <= 3


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield all statements, those within others too, but imports and what reads."""
    for top in body:
        if not isinstance(top, (ast.Import, ast.ImportFrom)) and not is_reading(top):
            yield from (node for node in ast.walk(top) if isinstance(node, ast.stmt))


def is_reading(statement: ast.stmt) -> bool:
    """Return whether a statement names what it loads, and does nothing else."""
    calls = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
    read = {ast.unparse(called) for called in calls}
    return isinstance(statement, ast.Assign) and "sd.load" in read <= {
        "sd.load",
        "range",
    }


def test_every_job_is_tried():
    """A test below runs it by its name."""
    text = Path(__file__).read_text()
    assert len(JOBS) >= 17
    assert all(f'"{job.stem}"' in text for job in JOBS)


def test_the_recipes_show_every_job():
    assert all(f"tests/jobs/{job.name}\n" in RECIPES for job in JOBS)


# -- what people have --------------------------------------------------------------


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(job: str) -> dict[str, Any]:
    """Return what the names of a job mean when it has run."""
    text = (HERE / f"{job}.py").read_text().replace('"5GB"', repr(SMALL))
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, f"{job}.py", "exec"), names)
    return names


def in_the_shell(command: str) -> int:
    """Return how a command ends that the recipes tell beside a job."""
    assert f"`{command}`" in RECIPES
    return main(shlex.split(command.replace("5GB", SMALL))[1:])


def llama(seed: int, layers: int = 6) -> State:
    """Return a small model with the names of a Llama."""
    torch.manual_seed(seed)
    state = {"model.embed_tokens.weight": torch.randn(32, 16)}
    for k in range(layers):
        name = f"model.layers.{k}"
        state[f"{name}.input_layernorm.weight"] = torch.rand(16)
        for part in "qkvo":
            state[f"{name}.self_attn.{part}_proj.weight"] = torch.randn(16, 16)
        state[f"{name}.mlp.up_proj.weight"] = torch.randn(64, 16)
    return state | {"model.norm.weight": torch.rand(16)}


def training(seed: int = 0) -> State:
    """Return what a training of a few layers writes."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential()
    model.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(3)])
    model.norm = torch.nn.BatchNorm1d(8)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}


def assert_same(ours: State, theirs: State) -> None:
    """Raise if two flat states differ in a name, a dtype or a bit."""
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert ours[name].dtype == x.dtype, name
        assert torch.equal(ours[name], x), name


def of_folder(name: str) -> State:
    """Return all tensors of a folder of shards, by its index."""
    index = json.loads(Path(name, "model.safetensors.index.json").read_text())
    files = {*index["weight_map"].values()}
    assert len(files) > 1
    return {k: x for file in files for k, x in load_file(Path(name, file)).items()}


# -- jobs --------------------------------------------------------------------------


def test_a_checkpoint_is_opened(capsys):
    state = training()
    torch.save(state, "train.pt")
    run("open_a_checkpoint")
    shown = capsys.readouterr().out
    assert "optimizer.state.0.exp_avg" in shown
    assert shown.endswith("torch.float32\n")
    assert in_the_shell("sdtree show train.pt") == 0
    assert "optimizer.state.0.exp_avg" in capsys.readouterr().out


def test_a_prefix_is_stripped():
    model = training()["model"]
    wrapped = {f"module.{name}": x for name, x in model.items()}
    torch.save({"state_dict": wrapped, "epoch": 3, "args": (1, 2)}, "ddp.pt")
    run("strip_a_prefix")
    made = torch.load("plain.pt")
    assert_same(made.pop("state_dict"), model)
    assert made == {"epoch": 3, "args": (1, 2)}
    stars = "state_dict.module.**=state_dict.**"
    assert in_the_shell(f"sdtree convert ddp.pt plain.pt --rename '{stars}'") == 0
    assert_same(torch.load("plain.pt")["state_dict"], model)


def test_checkpoints_are_averaged():
    states = [llama(k) | {"steps": torch.tensor(10 * k)} for k in range(3)]
    for k, state in enumerate(states):
        save_file(state, f"run_{k}.safetensors")
    run("average_checkpoints")
    soup = load_file("soup.safetensors")
    a, b, c = states
    for name, x in a.items():
        assert soup[name].dtype == x.dtype
        torch.testing.assert_close(
            soup[name], ((x + b[name] + c[name]) / 3).to(x.dtype)
        )


def test_a_moving_average_follows_a_training(monkeypatch):
    Path("training.py").write_text(TRAINING)
    monkeypatch.syspath_prepend(".")
    monkeypatch.delitem(sys.modules, "training", raising=False)
    made = run("moving_average")
    monkeypatch.delitem(sys.modules, "training")
    kept = torch.tensor([[0.0]])
    for step in range(1, 4):
        kept = 0.9 * kept + 0.1 * step
    torch.testing.assert_close(made["ema"]["weight"], kept)
    assert made["model"].weight.item() == 3
    made["model"].seen.add_(1)
    assert made["ema"]["seen"] == 3


TRAINING = """
import torch

model = torch.nn.Linear(1, 1, bias=False)
torch.nn.init.zeros_(model.weight)
model.register_buffer("seen", torch.tensor(0))


def steps():
    for step in range(1, 4):
        torch.nn.init.constant_(model.weight, step)
        model.seen.add_(1)
        yield step
"""


def test_lora_is_merged():
    """Into weights of half the width, as they are mostly, which keep it."""
    base, lora = {k: to_half(x) for k, x in llama(0).items()}, {}
    expected = {**base}
    for k, part in [(0, "q"), (0, "v"), (5, "q")]:
        name = f"model.layers.{k}.self_attn.{part}_proj"
        a, b = torch.randn(4, 16), torch.randn(16, 4)
        lora[f"base_model.model.{name}.lora_A.weight"] = a
        lora[f"base_model.model.{name}.lora_B.weight"] = b
        expected[f"{name}.weight"] = to_half(base[f"{name}.weight"] + 2 * (b @ a))
    save_file(base, "base.safetensors")
    save_file(lora, "adapter.safetensors")
    run("merge_lora")
    assert_same(load_file("merged.safetensors"), expected)
    stranger = f"base_model.model.{name}s"  # the adapter of another model
    lora |= {f"{stranger}.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    save_file(lora, "adapter.safetensors")
    with pytest.raises(sd.errors.SpecMismatch, match=f"unexpected: '{name}s.weight'"):
        run("merge_lora")


def test_the_largest_differences_come_first(capsys):
    a, b = llama(0), llama(1)
    save_file(a, "run_a.safetensors")
    save_file(b, "run_b.safetensors")
    run("top_differences")
    far = {name: (x - b[name]).abs().max().item() for name, x in a.items()}
    first = sorted(far, key=far.__getitem__, reverse=True)[:10]
    said = capsys.readouterr().out.splitlines()[1:11]
    assert [line.split()[0] for line in said] == first


def test_nans_are_found(capsys):
    state = training()
    torch.save(state, "train.pt")
    run("find_nans")
    assert capsys.readouterr().out == "[]\n"
    state["optimizer"]["state"][2]["exp_avg"][3] = float("nan")
    state["model"]["layers.1.bias"][0] = float("inf")
    torch.save(state, "train.pt")
    run("find_nans")
    names = ["model.layers.1.bias", "optimizer.state.2.exp_avg"]
    assert capsys.readouterr().out == f"{names}\n"


def test_parameters_are_counted_by_layer(capsys):
    save_file(llama(0, layers=2), "model.safetensors")
    run("parameters_by_layer")
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    a_layer = 16 + 4 * 16 * 16 + 64 * 16
    assert {name: int(count.replace(",", "")) for count, name in said} == {
        "model.embed_tokens": 32 * 16,
        "model.layers.0": a_layer,
        "model.layers.1": a_layer,
        "model.norm": 16,
    }


def test_runs_are_compared(capsys):
    a = llama(0)
    b = a | {"model.norm.weight": a["model.norm.weight"] + 1}
    save_file(a, "run_a.safetensors")
    save_file(b, "run_b.safetensors")
    run("compare_two_runs")
    shown = capsys.readouterr().out
    assert "model.norm.weight" in shown
    assert "embed" not in shown
    command = "sdtree diff run_a.safetensors run_b.safetensors --values"
    assert in_the_shell(command) == 1


def test_norms_keep_their_precision():
    state = llama(0)
    save_file(state, "model.safetensors")
    run("cast_all_but_norms")
    expected = {k: x if "norm" in k else x.bfloat16() for k, x in state.items()}
    assert_same(load_file("half.safetensors"), expected)


def test_the_optimizer_keeps_its_precision():
    state = training()
    torch.save(state, "train.pt")
    run("cast_the_model")
    half = torch.load("half.pt")
    model = {k: to_half(x) for k, x in state["model"].items()}
    assert_same(half["model"], model)
    for k, of_parameter in state["optimizer"]["state"].items():
        assert_same(half["optimizer"]["state"][k], of_parameter)
    assert half["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]


def to_half(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16() if x.is_floating_point() else x


def test_the_first_layers_are_taken():
    state = llama(0, layers=12)
    save_file(state, "model.safetensors")
    run("first_layers")
    starts = tuple(f"model.layers.{k}." for k in range(4))
    expected = {k: x for k, x in state.items() if k.startswith(starts)}
    assert_same(load_file("first.safetensors"), expected)


def test_a_file_is_split_into_shards():
    state = {"model": llama(0), "step": 3}
    torch.save(state, "train.pt")
    run("split_into_shards")
    assert_same(of_folder("folder"), state["model"])
    shutil.rmtree("folder")
    command = "sdtree convert train.pt folder --select 'model.**' --strip-prefix model"
    assert in_the_shell(f"{command} --shard-size 5GB") == 0
    assert_same(of_folder("folder"), state["model"])


def test_a_folder_becomes_a_file_and_a_folder_again():
    state = llama(0)
    names = sorted(state)
    parts = [{k: state[k] for k in names[i::2]} for i in range(2)]
    Path("llama").mkdir()
    where = {}
    for i, part in enumerate(parts, 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file(part, Path("llama", file), {"format": "pt"})
        where |= dict.fromkeys(part, file)
    size = sum(x.nbytes for x in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    Path("llama/model.safetensors.index.json").write_text(json.dumps(index))
    run("folder_to_one_file")
    assert_same(load_file("llama.safetensors"), state)
    assert_same(of_folder("again"), state)


def test_a_dcp_directory_becomes_a_file_and_a_folder():
    state = training()
    dcp.save(state, checkpoint_id="step_100")
    run("dcp_to_safetensors")
    half = {k: to_half(x) for k, x in state["model"].items()}
    assert_same(load_file("model.safetensors"), half)
    run("dcp_to_folder")
    assert_same(load_file("folder/model.safetensors"), {**state["model"]})


def test_arrays_of_jax_are_leaves():
    jax = pytest.importorskip("jax")
    kind = run("jax_arrays")["jax"].numpy.zeros(0).__class__
    state = {"w": jax.numpy.arange(6.0).reshape(2, 3), "n": jax.numpy.ones(2, int)}
    half = sd.cast(state, dtype=torch.bfloat16)
    assert half["w"].dtype == jax.numpy.bfloat16
    assert type(half["n"]) is kind
    assert half["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    sd.save(sd.map(torch.from_dlpack, state), "from_jax.safetensors")
    back = sd.map(jax.dlpack.from_dlpack, sd.load("from_jax.safetensors"))
    assert back["w"].tolist() == state["w"].tolist()
    check_leaf(kind, st.sampled_from(sd.leaves(state)))


def test_a_sharded_model_becomes_one_file(tmp_path):
    pool(2).run(play, "fsdp2_to_one_file", str(tmp_path))
    expected = {k: x.bfloat16() for k, x in perceptron().state_dict().items()}
    assert_same(load_file("model.safetensors"), expected)


def perceptron() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))


def play(job: str, folder: str) -> None:
    """Run a job on this rank, with its model sharded."""
    module = type(sys)("training")
    module.model = perceptron()
    fully_shard(module.model)
    sys.modules["training"] = module
    with chdir(folder):
        runpy.run_path(str(HERE / f"{job}.py"))
    del sys.modules["training"]
    dist.barrier()
