"""What torch has set around a call, such as a default device, and how to be free of it.

Whatever makes, writes or looks at local tensors does so in one of these contexts. What
users give, such as the function of ``map``, runs in what they have set.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import wraps
from types import TracebackType
from typing import Any, ClassVar, ParamSpec, TypeVar, final

import torch
from torch import overrides

P = ParamSpec("P")
T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

_FAKE: Any = torch._C._TorchDispatchModeKey.FAKE
_LEVELS: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


class making:
    """A context in which torch makes plain tensors, whatever is set around it.

    Nothing is recorded for gradients, and no default device, grad mode, inference mode,
    level of ``torch.func`` or fake mode has an effect.

    >>> with torch.inference_mode(), torch.device("meta"), making():
    ...     made = torch.ones(1)
    >>> made.device, made.is_inference()
    (device(type='cpu'), False)
    """

    __slots__ = ("_forward", "_grad", "_guard", "_left")
    is_inference: ClassVar = False

    def __enter__(self) -> None:
        self._left = _leave() if _is_something_set() else None
        self._guard: Any = None
        if torch.is_inference_mode_enabled() is not self.is_inference:
            self._guard = torch._C._InferenceMode(self.is_inference)
            self._guard.__enter__()
        self._grad = torch.is_grad_enabled()
        self._forward = torch._C._is_fwd_grad_enabled()
        torch._C._set_grad_enabled(False)
        torch._C._set_fwd_grad_enabled(False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        torch._C._set_fwd_grad_enabled(self._forward)
        torch._C._set_grad_enabled(self._grad)
        if self._guard is not None:
            self._guard.__exit__(kind, error, trace)
        if self._left is not None:
            self._left.close()


def _is_something_set() -> bool:
    return (
        torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or _LEVELS.peek_interpreter_stack() is not None
    )


def _leave() -> ExitStack:
    """Leave modes and levels, and return what enters them again."""
    left = ExitStack()
    for mode in reversed(overrides._get_current_function_mode_stack()):
        overrides._pop_mode()
        left.callback(overrides._push_mode, mode)
    fake = torch._C._unset_dispatch_mode(_FAKE)
    if fake is not None:
        left.callback(torch._C._set_dispatch_mode, fake)
    if _LEVELS.peek_interpreter_stack() is not None:
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

        left.enter_context(temporarily_clear_interpreter_stack())
    return left


@final
class writing(making):
    """A context in which torch writes into tensors, of inference mode as well.

    >>> with torch.inference_mode():
    ...     made = torch.ones(1)
    >>> with writing():
    ...     made.zero_()
    tensor([0.])
    """

    __slots__ = ()
    is_inference: ClassVar = True


def settled(act: Callable[P, T]) -> Callable[P, T]:
    """Return a function that runs in ``making()``."""

    @wraps(act)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with making():
            return act(*args, **kwargs)

    return run


def uncompiled(function: Function) -> Function:
    """Return the function, which breaks the graph where a compiled one calls it.

    It runs as it is then, and so does all that it calls. ``torch.compiler.disable``
    does the same by wrapping it, and imports the compiler for that, which takes long.
    """
    marked: Any = function
    marked._torchdynamo_disable = True
    marked._torchdynamo_disable_msg = "what sdtree does to trees is no part of a graph"
    with suppress(AttributeError):
        frames: Any = torch._C._dynamo.eval_frame  # pyright: ignore[reportAttributeAccessIssue]
        skip = frames._FrameAction.SKIP
        strategy = frames._FrameExecStrategy(skip, skip)
        frames.set_code_exec_strategy(marked.__code__, strategy)
    return function
