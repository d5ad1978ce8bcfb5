"""A shared library made by PyTorch's AOTInductor, run side by side by several threads.

PyTorch's own loader holds the interpreter's lock while the library runs, so that threads would wait for each other.
The library's C interface (torch/csrc/inductor/aoti_runtime/interface.h), called through ctypes, does not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from ctypes import POINTER, PYFUNCTYPE, byref, c_bool, c_char_p, c_size_t, c_void_p, py_object
from pathlib import Path

import torch
from torch import Tensor

# Prototypes of our own: those of `ctypes.pythonapi` belong to everyone in the process.
_capsule_pointer = PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_capsule = PYFUNCTYPE(py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", ctypes.pythonapi))


class _Constant(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("handle", c_void_p))


class Library:
    """One compiled body. Calls of several threads run at the same time and hold no lock of the interpreter."""

    def __init__(self, path: Path, callers: int) -> None:
        """`callers` is how many threads may run it at the same time; more wait. Raises OSError, RuntimeError."""
        self._library = ctypes.CDLL(str(path))
        self._library.AOTInductorGetLastError.restype = c_char_p
        self._run = self._library.AOTInductorModelContainerRun
        self._run.argtypes = [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_void_p), c_size_t, c_void_p, c_void_p]
        self._container = c_void_p()
        self._check(
            self._library.AOTInductorModelContainerCreateWithDevice(
                byref(self._container), c_size_t(callers), b"cpu", None
            )
        )
        self._kept: list[Tensor] = []

    def constants(self) -> dict[str, bytes]:
        """The library's name of each parameter, by the body's name."""
        count = c_size_t()
        self._check(self._library.AOTInductorModelContainerGetNumConstants(self._container, byref(count)))
        return {self._name("OriginalFQN", i).decode(): self._name("Name", i) for i in range(count.value)}

    def replace(self, constants: Mapping[bytes, Tensor]) -> None:
        """Uses these tensors instead of the library's own; they may be in oneDNN's layouts."""
        self._kept += constants.values()
        entries = (_Constant * len(constants))(
            *(_Constant(name, handle) for name, handle in zip(constants, _handles(constants.values()), strict=True))
        )
        self._check(
            self._library.AOTInductorModelContainerUpdateUserManagedConstantBufferPairs(
                self._container, entries, c_size_t(len(entries)), c_bool(False), c_bool(False)
            )
        )

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The one output."""
        outputs = (c_void_p * 1)()
        handles = (c_void_p * len(inputs))(*_handles(inputs))  # the library frees them
        self._check(self._run(self._container, handles, len(inputs), outputs, 1, None, None))
        output: Tensor = torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr(_capsule(outputs[0], None, None))
        return output

    def _name(self, kind: str, index: int) -> bytes:
        name = c_char_p()
        get = getattr(self._library, f"AOTInductorModelContainerGetConstant{kind}")
        self._check(get(self._container, c_size_t(index), byref(name)))
        return name.value or b""

    def _check(self, code: int) -> None:
        if code:
            reason = self._library.AOTInductorGetLastError() or b"it does not say why"
            raise RuntimeError(f"the compiled network failed: {reason.decode(errors='replace')}")


def _handles(tensors: Iterable[Tensor]) -> list[int]:
    """New references to tensors, as the C interface knows them."""
    return [_capsule_pointer(each, None) for each in torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))]
