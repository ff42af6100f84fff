"""Libraries that people use beside torch, each with state of its own and of ours.

``pip install 'sdtree[clients]'`` has them all; a test whose library is not there is
skipped. Models are made from a config, and nothing is fetched.
"""

import os
import pickle
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from shards import together
from torch import nn

import sdtree as sd
from sdtree import compat
from sdtree.__main__ import main
from sdtree.errors import UnknownContainer
from sdtree.io import open_file


def needs(module):
    """Return a module of a client, or skip the test."""
    name = module.partition(".")[0]
    reason = f"{name} is not installed: pip install 'sdtree[clients]'"
    return pytest.importorskip(module, reason=reason)


@pytest.fixture
def _folders():
    needs("huggingface_hub")


writes = pytest.mark.usefixtures("_folders")


# -- transformers ------------------------------------------------------------------


def small(name):
    """Return a small model of transformers, whose head and embedding are tied."""
    transformers = needs("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "vocab_size": 50, "tie_word_embeddings": True}
    kind, config = {
        "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
        "bert": (transformers.BertForMaskedLM, transformers.BertConfig),
    }[name]
    torch.manual_seed(0)
    return kind, kind(config(**sizes)).eval()


def logits(model):
    return model(torch.arange(6).view(2, 3)).logits


@writes
@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("size", ["3KB", "5GB"])
def test_transformers_takes_a_folder_of_ours(tmp_path, name, size):
    """from_pretrained of what we wrote is the model, its tie a tie."""
    kind, model = small(name)
    model.config.save_pretrained(tmp_path)
    sd.save(model.state_dict(), tmp_path, shard_bytes=size)
    assert len([*tmp_path.glob("*.safetensors")]) == 1 or size == "3KB"
    other, about = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    assert sd.equal(dict(other.eval().state_dict()), dict(model.state_dict()))
    assert sd.ties(other.state_dict()) == sd.ties(model.state_dict()) != []
    assert torch.equal(logits(other), logits(model))


@writes
@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("size", ["3KB", "5GB"])
def test_a_folder_of_transformers_opens(tmp_path, name, size):
    """load of what save_pretrained wrote has its names, a tie once, and the index."""
    _, model = small(name)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=size)
    back, state = sd.load(tmp_path / "theirs"), dict(model.state_dict())
    tied = state.keys() - back.keys()
    assert sd.equal(back, {name: state[name] for name in sorted(back)})
    assert all(
        any(name in map(str, sum(g, ())) for g in sd.ties(state)) for name in tied
    )
    assert sd.metadata(tmp_path / "theirs")["format"] == "pt"
    if size == "3KB":
        assert len({*open_file(tmp_path / "theirs").files.values()}) > 2
    sd.save(back, tmp_path / "ours", shard_bytes=size)
    assert sorted(os.listdir(tmp_path / "ours")) == sorted(
        name for name in os.listdir(tmp_path / "theirs") if name.startswith("model")
    )


# -- peft --------------------------------------------------------------------------


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6))


def adapted():
    """Return a model of peft with LoRA adapters that do something."""
    peft = needs("peft")
    model = peft.get_peft_model(base(), peft.LoraConfig(r=2, target_modules=["0", "2"]))
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p)
    return peft, model


ADAPTER = "adapter_model.safetensors"


def test_adapters_are_a_selection_of_the_model():
    """What get_peft_model_state_dict returns is one select and one rename."""
    peft, model = adapted()
    pick = sd.select("**.lora_*.**") | sd.rename(("**.default.weight", "**.weight"))
    made, theirs = pick(model.state_dict()), peft.get_peft_model_state_dict(model)
    assert sd.equal({**made}, {**theirs})
    assert len(made) == 4
    again = peft.get_peft_model(base(), model.peft_config["default"])
    left = peft.set_peft_model_state_dict(again, sd.copy(made))
    assert not left.unexpected_keys
    assert sd.equal(again.state_dict(), model.state_dict())


def test_adapters_go_through_files(tmp_path):
    """from_pretrained takes the adapters that we wrote, and load those of theirs."""
    peft, model = adapted()
    state = peft.get_peft_model_state_dict(model)
    model.save_pretrained(tmp_path / "theirs")
    assert sd.equal(sd.load(tmp_path / "theirs"), dict(sorted(state.items())))
    assert sd.metadata(tmp_path / "theirs")["format"] == "pt"
    (tmp_path / "ours").mkdir()
    model.peft_config["default"].save_pretrained(tmp_path / "ours")
    sd.save(state, tmp_path / "ours" / ADAPTER)
    other = peft.PeftModel.from_pretrained(base(), tmp_path / "ours")
    assert sd.equal(other.state_dict(), model.state_dict())
    x = torch.ones(1, 6)
    assert torch.equal(other(x), model(x))
    assert not torch.equal(model(x), base()(x))


# -- torchao -----------------------------------------------------------------------


def quantized():
    """Return a model whose weights are 8-bit, and its state."""
    quantization = needs("torchao.quantization")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8)).bfloat16()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(version=2))
    return model, model.state_dict()


def test_quantized_weights_are_moved_and_written(tmp_path):
    """They are themselves again from copy, offload and .pt files, ours and torch's."""
    model, state = quantized()
    kind = type(state["0.weight"])
    sd.save(state, tmp_path / "ours.pt")
    torch.save(state, tmp_path / "theirs.pt")
    made = [
        sd.copy(state),
        sd.offload(state),
        sd.copy(state, into=sd.empty_like(state)),
    ]
    made += [sd.load(tmp_path / name) for name in ("ours.pt", "theirs.pt")]
    made += [sd.load(tmp_path / "theirs.pt", mmap=True)]
    made += [torch.load(tmp_path / "ours.pt", weights_only=True)]
    for each in made:
        assert type(each["0.weight"]) is kind is not torch.Tensor
        assert sd.equal(each, state)
    x = torch.ones(1, 64, dtype=torch.bfloat16)
    expected = model(x)
    for each in made:
        model.load_state_dict(each, assign=True)
        assert torch.equal(model(x), expected)


@writes
def test_quantized_weights_go_to_folders_as_torchao_takes_them_apart(tmp_path):
    """A folder refuses them whole, by name; their parts are tensors and metadata."""
    parts = needs("torchao.prototype.safetensors.safetensors_support")
    _, state = quantized()
    with pytest.raises(TypeError, match=r"0.weight: .* no room for an Int8Tensor"):
        sd.save(state, tmp_path, shard_bytes="1KB")
    assert not os.listdir(tmp_path)
    flat, metadata = parts.flatten_tensor_state_dict(dict(state))
    sd.save(flat, tmp_path, shard_bytes="1KB", metadata=metadata)
    assert len({*open_file(tmp_path).files.values()}) > 1
    read = sd.load(tmp_path), sd.metadata(tmp_path)
    back, rest = parts.unflatten_tensor_state_dict(*read)
    assert sd.equal(back, dict(state))
    assert not rest


# -- accelerate --------------------------------------------------------------------


@writes
def test_folders_of_accelerate(tmp_path):
    """save_model writes what load opens, and load_checkpoint_in_model takes ours."""
    accelerate = needs("accelerate")
    model = base()
    accelerate.Accelerator(cpu=True).save_model(model, tmp_path / "theirs", "0.1KB")
    state = sd.copy(dict(sorted(model.state_dict().items())))
    assert sd.equal(sd.load(tmp_path / "theirs"), state)
    sd.save(state, tmp_path / "ours", shard_bytes=100)
    assert len([*(tmp_path / "ours").glob("*.safetensors")]) > 1
    model.load_state_dict(sd.map(torch.zeros_like, model.state_dict()))
    accelerate.load_checkpoint_in_model(model, tmp_path / "ours")
    assert sd.equal(dict(sorted(model.state_dict().items())), state)


def accelerated(form):
    """Return the Accelerator of ranks under FSDP2, and its plugin.

    It takes ranks on CPUs for no place for FSDP, so it is told that they are one.
    """
    import accelerate
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2,
        state_dict_type=form,
        auto_wrap_policy="no_wrap",
        reshard_after_forward=True,
    )
    accelerator = accelerate.Accelerator(cpu=True, fsdp_plugin=plugin)
    for state in (accelerator.state, accelerate.PartialState()):
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    return accelerator, plugin


def as_launched():
    """Return a patch of the environment to what a launcher tells a rank."""
    names = {"RANK": dist.get_rank(), "WORLD_SIZE": dist.get_world_size()}
    told = names | {f"LOCAL_{name}": number for name, number in names.items()}
    return mock.patch.dict(os.environ, {name: str(n) for name, n in told.items()})


def saved_by_accelerate(folder, form, is_patched):
    """Save, wipe and load a training; return whether it came back, and the whole.

    By names, for torch makes lists of the tuples of an optimizer.
    """
    from accelerate import utils

    with as_launched(), compat.patch() if is_patched else nullcontext():
        accelerator, plugin = accelerated(form)
        model = base()
        optimizer = torch.optim.AdamW(model.parameters())
        model, optimizer = accelerator.prepare(model, optimizer)
        model(torch.ones(2, 6)).sum().backward()
        optimizer.step()
        before = sd.copy([model.state_dict(), optimizer.state_dict()])
        utils.save_fsdp_model(plugin, accelerator, model, folder)
        utils.save_fsdp_optimizer(plugin, accelerator, optimizer, model, folder)
        whole = accelerator.get_state_dict(model)
        for x in [*model.parameters(), *sd.leaves(optimizer.state_dict()["state"])]:
            x.data.zero_()
        wiped = [model.state_dict(), optimizer.state_dict()]
        assert not sd.equal(wiped, before)
        utils.load_fsdp_model(plugin, accelerator, model, folder)
        utils.load_fsdp_optimizer(plugin, accelerator, optimizer, model, folder)
        after = [model.state_dict(), optimizer.state_dict()]
    return sd.equal(sd.flatten(before), sd.flatten(after)), whole


@pytest.mark.parametrize("form", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_accelerate_saves_and_loads_fsdp2_on_ours(tmp_path, form):
    """With the patch on and off it writes the same, and comes back to what it was."""
    needs("accelerate")
    on, off = (
        together(saved_by_accelerate, str(tmp_path / str(is_patched)), form, is_patched)
        for is_patched in (True, False)
    )
    assert all(came_back for came_back, _ in [*on, *off])
    assert sd.equal({**on[0][1]}, {**off[0][1]})
    assert [whole for _, whole in on[1:]] == [{}] * (len(on) - 1)
    if form == "FULL_STATE_DICT":
        for file in ("pytorch_model_fsdp.bin", "optimizer.bin"):
            a, b = (sd.load(tmp_path / each / file) for each in ("True", "False"))
            assert sd.equal(sd.flatten({**a}), sd.flatten({**b}))
    else:
        for each in ("True", "False"):
            back = sd.load(tmp_path / each / "pytorch_model_fsdp_0")
            assert sd.equal({"model": {**on[0][1]}}, back)


# -- lightning ---------------------------------------------------------------------


def training():
    """Return a module of lightning, and what trains it up to an epoch."""
    lightning = needs("lightning")

    class Net(lightning.LightningModule):
        def __init__(self, rate=0.1):
            super().__init__()
            self.save_hyperparameters()
            self.net = nn.Linear(4, 1)

        def training_step(self, batch, index):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            made = torch.optim.AdamW(self.parameters(), self.hparams.rate)
            schedule = torch.optim.lr_scheduler.StepLR(made, 1)
            return {"optimizer": made, "lr_scheduler": schedule}

    rows = torch.utils.data.TensorDataset(torch.arange(32.0).view(8, 4))
    data = torch.utils.data.DataLoader(rows, batch_size=4)

    def fit(epochs, path=None, seed=0):
        torch.manual_seed(seed)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(net := Net(), data, ckpt_path=path)
        return net, trainer

    return Net, fit


def test_a_checkpoint_of_lightning(tmp_path, capsys, monkeypatch):
    """It opens, is shown, goes through both formats, and each is trained on from."""
    monkeypatch.chdir(tmp_path)
    kind, fit = training()
    net, trainer = fit(2)
    trainer.save_checkpoint("theirs.ckpt")
    tree = sd.load("theirs.ckpt")
    assert sd.equal(tree, torch.load("theirs.ckpt", weights_only=False))
    sd.save(tree, "saved.ckpt")
    capsys.readouterr()
    assert main(["show", "theirs.ckpt"]) == 0
    assert "state_dict.net.weight" in capsys.readouterr().out
    assert main(["convert", "theirs.ckpt", "through.safetensors"]) == 0
    assert main(["convert", "through.safetensors", "back.ckpt"]) == 0
    assert main(["diff", "theirs.ckpt", "back.ckpt", "--values"]) == 0
    went_on, _ = fit(3, "theirs.ckpt", seed=1)
    afresh, _ = fit(3, seed=1)
    assert not sd.equal(went_on.state_dict(), afresh.state_dict())
    for path in ("saved.ckpt", "back.ckpt"):
        again, _ = fit(3, path, seed=1)
        assert sd.equal(again.state_dict(), went_on.state_dict())
        loaded = kind.load_from_checkpoint(path)
        assert sd.equal(loaded.state_dict(), net.state_dict())


# -- tensordict --------------------------------------------------------------------


def apart(td):
    keys = (*td.keys(),)
    beside = keys, td.batch_size, td.device, td.names, td.is_locked
    return [td[key] for key in keys], beside, keys


def again(beside, children):
    """Return the TensorDict of these children, locked if it was."""
    from tensordict import TensorDict

    keys, size, device, names, is_locked = beside
    held = dict(zip(keys, children, strict=True))
    made = TensorDict(held, batch_size=size, device=device, names=names)
    return made.lock_() if is_locked else made


def dicts():
    """Return the class TensorDict, and one of it."""
    kind = needs("tensordict").TensorDict
    inner = {"c": torch.ones(4, 2)}
    return kind, kind({"a": torch.arange(4.0), "b": inner, "s": "text"}, [4])


def test_a_tensordict_is_refused_by_name_until_it_is_registered():
    """The advice works: it comes back with its sizes, and with its lock."""
    kind, td = dicts()
    with pytest.raises(UnknownContainer, match=r"x: .*register_container.TensorDict"):
        sd.copy({"x": td})
    sd.register_container(kind, flatten=apart, unflatten=again)
    for x in (td, td.clone().lock_()):
        made = sd.copy({"x": x})
        assert type(made["x"]) is kind
        assert (made["x"].batch_size, made["x"].is_locked) == ((4,), x.is_locked)
        assert sd.equal(made, {"x": x})
        assert made["x"]["a"].data_ptr() != x["a"].data_ptr()
    assert sd.names({"x": td}) == ["x.a", "x.b.c", "x.s"]
    half = sd.cast({"x": td}, dtype=torch.float16)["x"]
    assert half["b", "c"].dtype is torch.float16
    assert half["s"] == "text"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_tensordict_goes_by_its_dict(tmp_path, suffix):
    kind, td = dicts()
    sd.save(td.to_dict(), tmp_path / f"td{suffix}")
    back = kind.from_dict(sd.load(tmp_path / f"td{suffix}"), batch_size=[4])
    assert sd.equal(back.to_dict(), td.to_dict())
    assert (back.batch_size, back["s"]) == ((4,), "text")


def test_a_copy_of_a_mapped_tensor_is_in_no_file(tmp_path):
    """Else it would, pickled, come back as what the file holds, in the wrong dtype."""
    kind, td = dicts()
    tree = td.exclude("s").memmap(tmp_path).to_dict()
    mapped = type(tree["a"])
    assert mapped is not torch.Tensor
    assert sd.map(lambda x: x, tree)["a"] is tree["a"]
    copies = [sd.copy(tree), sd.offload(tree), sd.copy(tree, into=sd.empty_like(tree))]
    for made in copies:
        assert sd.equal(made, tree)
    for made in (*copies, sd.cast(tree, dtype=torch.float16)):
        assert type(made["a"]) is mapped
        with pytest.raises(RuntimeError, match="no file"):
            made["a"].filename  # noqa: B018
        with pytest.raises(RuntimeError, match="handler or filename"):
            pickle.dumps(made["a"])
    loose = sd.where(mapped, sd.map(lambda x: x.as_subclass(torch.Tensor)))
    with pytest.raises(TypeError, match=r"a: .* no room for a MemoryMappedTensor"):
        sd.save(tree, tmp_path / "td.safetensors")
    sd.save(loose(tree), tmp_path / "td.safetensors")
    back = sd.load(tmp_path / "td.safetensors")
    assert sd.equal(back, loose(tree))
    assert kind(back, [4]).memmap(tmp_path / "again").is_memmap()


# -- diffusers ---------------------------------------------------------------------


def denoiser():
    """Return a small model of diffusers, with convolutions and attention."""
    diffusers = needs("diffusers")
    torch.manual_seed(0)
    ways = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")}
    ways |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    sizes |= {"block_out_channels": (4, 8), "norm_num_groups": 2}
    sizes |= {"attention_head_dim": 4, "layers_per_block": 1}
    return diffusers.UNet2DModel(**ways, **sizes)


@pytest.mark.parametrize("size", ["10GB", "3KB"])
def test_what_diffusers_saves_is_read_whole_and_in_shards(tmp_path, size):
    """Its files have a name of their own, and its folder is found all the same."""
    model = denoiser()
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert len([*tmp_path.glob("*.safetensors")]) == (1 if size == "10GB" else 16)
    assert sd.equal(sd.load(tmp_path), dict(model.state_dict()))


def test_diffusers_reads_what_is_written_in_its_place(tmp_path):
    model = denoiser()
    model.save_pretrained(tmp_path)
    [file] = tmp_path.glob("*.safetensors")
    half = sd.cast(sd.load(file, mmap=False), dtype=torch.float16)
    sd.save(half, file)
    back = type(model).from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert sd.equal(dict(back.state_dict()), half)
