"""Worlds: trees as users bring them, drawn as the code that makes them.

A ``World`` is text, so that it can be made again, sent to other processes, and pasted
into a test. ``worlds()`` draws them.
"""

from dataclasses import dataclass
from functools import cache

from hypothesis import strategies as st
from ingredients import NAMES


@dataclass(frozen=True)
class World:
    """A tree, as the lines that make what it shares and the expression of it."""

    lines: tuple[str, ...]
    tree: str

    def build(self):
        """Return the tree, made anew."""
        names = dict(NAMES)
        exec("\n".join(self.lines), names)
        return eval(self.tree, names)


# -- leaves ------------------------------------------------------------------------

DTYPES = [
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "int8",
    "uint8",
    "int64",
    "bool",
]
DTYPES += [
    "uint16",
    "complex64",
    "complex32",
    "complex128",
    "int32",
    "float8_e5m2",
    "uint64",
]
VIEWS = (
    *("{}", "{}.detach()", "{}.view(4, 6)", "{}.view(4, 6).t()", "{}[2:5]", "{}[20:]"),
    *(
        "{}[::2]",
        "{}[1::2]",
        "{}[:0]",
        "{}[3]",
        "{}[7:8].view(())",
        "{}[6].expand(2, 2)",
    ),
    *("{}.view(4, 6)[:, 0].expand(2, 4)", "{}.as_strided((2, 2), (4, 4), 1)"),
    *("{}.view(4, 6)[:, 1:3]", "{}.view(2, 12).chunk(3, dim=1)[0]"),
    *("{}.view(2, 12).chunk(3, dim=1)[1]", "{}.view(2, 12).chunk(3, dim=1)[2]"),
    *("{}.as_strided((3, 2), (2, 1), 4)", "{}.view(torch.uint8)", "{}.conj()"),
    *("{}.view(torch.uint8)[3:9]", "Parameter({}.view(4, 6), requires_grad=False)"),
    *("noted({}[4:8])", "{}.view(4, 6)[::3]", "{}.as_strided((3,), (9,), 2)"),
    *("{}.clone()", "{}.to('meta')", "{}.view(2, 3, 4).permute(2, 0, 1)"),
)
FLOAT_VIEWS = (
    *("Parameter({})", "learned({})", "computed({})", "learned({}[3:7])"),
    *("TwoTensor({0}, {0}.clone())", "Coded({0}.view(torch.int8), {0}, torch.float32)"),
    "TwoTensor(TwoTensor({0}, {0} + 1), TwoTensor({0} + 2, {0}))",
    "TwoTensor(Parameter({0}), Parameter({0}[:]))",
)
ARRAYS = ("<f4", ">f4", "<f8", "<f2", "<i8", ">i4", "?", "<u2", "<c8", "S3", "<U2")
ARRAYS += ("M8[s]", "V3", "i1,<f4", "<f4,<i8", "V0", "<c16", "g", "i1,<f4", "<f4,<i8")
CUTS = (
    *("{}", "{}[2:5]", "{}[::-1]", "{}.reshape(3, 4)", "{}.reshape(3, 4).T", "{}[:0]"),
    *("{}[3:4].reshape(())", "{}[4]", "{}[::2]", "frozen({}[1:])", "{}[:1]", "{}[7:]"),
    *("np.broadcast_to({}[:3], (2, 3))", "{}.copy()", "{}.reshape(3, 4)[1:, ::-2]"),
)
FIELDS = ("{}['f1']", "{}['f1'][2:4]", "{}[0]['f0']", "{}[4]")
SHOWN = ("shown({}[1:4])", "shown({}[:4])", "shown({})", "shown({}.reshape(3, 4))")
OTHERS = (
    *("torch.eye(3).to_sparse()", "torch.eye(3).to_sparse_csr()"),
    "torch.eye(3).to_sparse_csc()",
    "torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,))",
    "torch.eye(4).to_sparse_bsr((2, 2))",
    "torch.quantize_per_tensor(torch.arange(4.0), 0.5, 3, torch.qint8)",
    "per_channel(torch.ones(2, 2))",
)
PLAIN = (
    *("None", "True", "1", "0", "1.0", "0.0", "-0.0", "float('nan')", "float('inf')"),
    *("'text'", "''", "b'bytes'", "2**70", "1+2j", "complex(-0.0, 0.0)", "Color.RED"),
    *("Small.ONE", "Word.W", "Text('w')", "torch.float32", "torch.Size([2, 3])"),
    *(
        "torch.device('cpu')",
        "torch.strided",
        "torch.per_channel_affine",
        "buffer(b'abc', 1)",
        "np.float32(0.5)",
    ),
    *(
        "np.int64(7)",
        "np.datetime64('2020-01-01')",
        "np.void(b'abc')",
        "np.bool_(True)",
    ),
    *("np.str_('é')", "np.complex64(1j)", "'\\ud800'", "torch.preserve_format"),
)


# -- containers --------------------------------------------------------------------

ODD = (
    *("object()", "{1, 2}", "range(3)", "lambda: 0", "torch.nn.Linear(1, 1)", "int"),
    *("torch.nn.UninitializedParameter()", "torch.nn.UninitializedBuffer()"),
    *("torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])", "jagged()"),
    *("faked()", "functional()", "batched()", "inferred()", "slice(1)", "datetime.now"),
    *("np.array([None, 1])", "np.ma.masked_array([1, 2])", "memoryview(b'ab')"),
    *("bytearray(b'ab')", "UserDict", "iter([])", "torch.Generator()", "Broken()"),
    *("np.matrix([1])", "np.recarray(2, 'i4')", "NotImplemented"),
    *("packed(torch.float4_e2m1fn_x2)", "packed(torch.uint4)", "packed(torch.int2)"),
    *("torch.ones(2).to_mkldnn()", "graded()", "freed()", "freed(8)"),
    *("freed(16, 4)", "freed(28, 4)", "freed(16, 0, 2)"),
)
"""Leaves that are refused by name, or work: never an error without a path."""

WORDS = ("'w'", "'b'", "'0'", "'a.b'", "'weight'", "'module'")
KEYS = (
    *("'w'", "'b'", "0", "'0'", "1", "'a.b'", "'weight'", "''", "'module'", "None"),
    *("True", "1.0", "0.0", "-0.0", "False", "b'k'", "(0, 'w')", "(False, 'w')", "-1"),
    *("Small.ONE", "Word.W", "Text('w')", "Color.RED", "'é'", "'a*'", "2.5", "'w.b'"),
    *("frozenset({1})", "2**70", "np.int64(1)", "('',)"),
)
TWINS = {
    "1": ("True", "1.0", "Small.ONE", "np.int64(1)"),
    "0": ("False", "0.0", "-0.0", "Small.ZERO"),
    "'w'": ("Word.W", "Text('w')"),
    "(0, 'w')": ("(False, 'w')", "(0.0, 'w')", "(0, Word.W)"),
    "0.0": ("-0.0", "0"),
}
MAPPINGS = (
    *("dict([{}])", "dict([{}])", "dict([{}])", "OrderedDict([{}])", "ordered({})"),
    *("turned({})", "state({})", "opened({})", "defaultdict(list, [{}])"),
    *("UserDict([{}])", "Attributed({})", "boxed({})", "mirrored({})"),
)
SEQUENCES = (
    *("[{}]", "[{}]", "tuple([{}])", "rows({})", "deque([{}], maxlen=9)"),
    *("UserList([{}])", "listed({})"),
)
FIXED = ("Pair({}, {})", "layer({}, {})", "Three({}, {})", "Slotted({}, {})")
AROUND = (
    "partly({})",
    "timed({})",
    "deep(3, {})",
    "wide(3, {})",
    "deep(60, {})",
    "wide(40, {})",
)


def views_of(dtype):
    """Return the code of the views of a tensor of a dtype, to be told its name."""
    views = [*VIEWS]
    if dtype in ("float32", "float64", "float16", "bfloat16"):
        views += FLOAT_VIEWS
    views += ["{}.conj().imag"] * dtype.startswith("complex") * ("32" not in dtype)
    return views + ["{}.numpy()[2:7]", "{}.numpy()"] * (dtype in ("float32", "int64"))


def cuts_of(dtype):
    """Return the code of the views of an array, those that few dtypes have thrice."""
    cuts = [*CUTS, *FIELDS * 3] if "," in dtype else [*CUTS]
    return cuts + [*SHOWN] * 3 * (dtype in ("<f4", "<f8", "<i8", "<c8", "<f2"))


# -- drawing -----------------------------------------------------------------------


@cache
def _below(n):
    return st.integers(0, n - 1)


class Pen:
    """Writes the code of trees; what Hypothesis draws are indices alone."""

    def __init__(self, draw):
        self.draw = draw
        self.lines = []
        self.sources = []
        self.data = []
        self.is_calm = False

    def below(self, n):
        return self.draw(_below(n))

    def pick(self, options):
        return options[self.below(len(options))]

    def some(self, options, most):
        """Return several of the options, each once."""
        found = [self.pick(options) for _ in range(self.below(most + 1))]
        return list(dict.fromkeys(found))

    def storage(self, name):
        dtype = self.pick(DTYPES[: 8 if self.is_calm else None])
        self.lines.append(f"{name} = dense((24,), torch.{dtype}, {self.below(9)})")
        self.sources.append([view.format(name) for view in views_of(dtype)])

    def array(self, name):
        dtype = self.pick(ARRAYS)
        self.lines.append(f"{name} = counted({dtype!r})")
        self.sources.append([cut.format(name) for cut in cuts_of(dtype)])

    def choose(self):
        """Leave few leaves to draw, so that those that share memory meet in a tree."""
        if self.sources and self.below(4):
            count = 2 + self.below(6)
            self.data = [self.pick(self.pick(self.sources)) for _ in range(count)]
        else:
            self.data = [x for source in self.sources for x in source]

    def leaf(self):
        which = self.below(6 if self.is_calm else 8)
        if which < 5 and self.data:
            return self.pick(self.data)
        return self.pick(OTHERS if which == 7 else PLAIN)

    def root(self, depth):
        which = self.below(10)
        if which > 7:
            return f"many({2 + self.below(9)}, {16 << self.below(9)})"
        if which < 5:
            keys = [self.pick(self.keys()) for _ in range(2 + self.below(4))]
            return self.mapping(self.pick(MAPPINGS), [*dict.fromkeys(keys)], depth - 1)
        return self.siblings(depth - 1) if which < 7 else self.tree(depth)

    def tree(self, depth):
        which = self.below(10) if depth else 0
        if which < 4:
            return self.leaf()
        if which < 6:
            keys = self.some(self.keys(), 4)
            return self.mapping(self.pick(MAPPINGS), keys, depth - 1)
        if which < 7:
            xs = [self.element(depth - 1) for _ in range(self.below(4))]
            return self.pick(SEQUENCES).format(", ".join(xs))
        if which < 8:
            pair = (self.tree(depth - 1), self.tree(depth - 1))
            return self.pick(FIXED).format(*pair)
        if which < 9:
            return self.siblings(depth - 1)
        return self.pick(AROUND).format(self.tree(min(depth - 1, 1)))

    def keys(self):
        return WORDS if self.is_calm else KEYS

    def element(self, depth):
        return self.tree(depth) if self.below(4) else "ABSENT"

    def mapping(self, make, keys, depth):
        pairs = [f"({key}, {self.tree(depth)})" for key in keys]
        return make.format(", ".join(pairs))

    def siblings(self, depth):
        """Return dicts whose keys are alike, or equal, or in another order."""
        keys = [self.pick(self.keys()), *self.some(self.keys(), 2)]
        below = min(depth, self.below(2))
        found = []
        for _ in range(2 + self.below(2)):
            twins = {} if self.is_calm else TWINS
            mine = [self.pick((key, *twins.get(key, ()))) for key in keys]
            turn = self.below(len(mine))
            mine = [*mine[turn:], *mine[:turn]]
            found.append(self.mapping("dict([{}])", mine, below))
        return self.pick(SEQUENCES[:3]).format(", ".join(found))


@st.composite
def worlds(draw, depth=4, more=()):
    """Return worlds that hold the nasty cases; ``more`` are leaves to draw as well."""
    pen = Pen(draw)
    pen.is_calm = pen.below(4) == 3
    for i in range((1, 2, 1, 0)[pen.below(4)]):
        pen.storage(f"b{i}")
    for i in range(0 if pen.is_calm else pen.below(2)):
        pen.array(f"n{i}")
    pen.choose()
    pen.data += more
    if pen.below(4) == 3:
        shared = pen.mapping("dict([{}])", pen.some(KEYS, 2), 0)
        pen.lines.append(f"d = {shared}")
        pen.data += ["d"] * (1 + len(pen.data) // 9)
    return World(tuple(pen.lines), pen.root(depth))
