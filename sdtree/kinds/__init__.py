"""The leaf kinds that sdtree knows. Those of other packages load when first met."""

from sdtree.kinds import abstract, plain, tensor
from sdtree.kinds.handler import add_lazy

add_lazy("numpy.ndarray", "sdtree.kinds.array")
add_lazy("numpy.void", "sdtree.kinds.array")
add_lazy("numpy.generic", "sdtree.kinds.array")
add_lazy("numpy.dtype", "sdtree.kinds.array")
add_lazy("torch.distributed.tensor.DTensor", "sdtree.kinds.dtensor")
add_lazy(
    "torch.distributed._shard.sharded_tensor.api.ShardedTensor", "sdtree.kinds.sharded"
)
add_lazy(
    "torch.distributed._functional_collectives.AsyncCollectiveTensor",
    "sdtree.kinds.waiting",
)
add_lazy("tensordict.memmap.MemoryMappedTensor", "sdtree.kinds.mapped")
for dataless in (
    "torch.nn.parameter.UninitializedTensorMixin",
    "torch.nested._internal.nested_tensor.NestedTensor",
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.functional_tensor.FunctionalTensor",
):
    add_lazy(dataless, "sdtree.kinds.dataless")

__all__ = ["abstract", "plain", "tensor"]
