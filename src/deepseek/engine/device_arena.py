"""GPU memory that can be given back and taken again at the same addresses.

CUDA graphs and kernels remember addresses. Virtual memory management (CUDA driver API, section
"Virtual Memory Management") keeps an address range while there is no memory behind it, so that a
model which has left the device comes back without capturing its graphs again.
"""

import ctypes
from functools import cache
from typing import Any

import torch

from deepseek.core.errors import ConfigurationError
from deepseek.engine.graph_capture import empty_cache, whole_device
from deepseek.weights.store.cutting import aligned

_PINNED_ALLOCATION = 1  # CU_MEM_ALLOCATION_TYPE_PINNED
_DEVICE_LOCATION = 1  # CU_MEM_LOCATION_TYPE_DEVICE
_READ_WRITE = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _AllocationFlags(ctypes.Structure):
    _fields_ = (
        ("compression_type", ctypes.c_ubyte),
        ("gpu_direct_rdma_capable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _AllocationProperties(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("requested_handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32_handle_meta_data", ctypes.c_void_p),
        ("flags", _AllocationFlags),
    )


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class DeviceArena:
    """One range of addresses of a GPU; has memory behind it from the start, until `release`."""

    def __init__(self, num_bytes: int, *, device: torch.device) -> None:
        """Reserve at least `num_bytes` (> 0) and back them.

        Raises `torch.OutOfMemoryError` where the device has less, `ConfigurationError` where the
        driver cannot do this.
        """
        torch.cuda.current_stream(device)  # makes the context that driver calls act in
        self._device = device
        index = torch.cuda.current_device() if device.index is None else device.index
        self._location = _Location(_DEVICE_LOCATION, index)
        self._properties = _AllocationProperties(type=_PINNED_ALLOCATION, location=self._location)
        self._num_bytes = aligned(num_bytes, self._granularity())
        self._address = ctypes.c_uint64()
        self._handle: ctypes.c_uint64 | None = None
        _call("cuMemAddressReserve", ctypes.byref(self._address), self._size, *_no_wish())
        try:
            self.acquire()
        except BaseException:
            self.close()
            raise
        self.memory = torch.as_tensor(_Bytes(self._address.value, num_bytes), device=device)
        """All of it, as uint8. To be touched only while `is_backed`."""

    @property
    def is_backed(self) -> bool:
        """Whether there is memory behind the addresses."""
        return self._handle is not None

    def acquire(self) -> None:
        """Put memory behind the addresses; what it holds is undefined.

        Raises `torch.OutOfMemoryError`, and has changed nothing then.
        """
        if self._handle is not None:
            return
        try:
            self._back()
        except torch.OutOfMemoryError:
            empty_cache(self._device)  # torch may keep what is missing
            self._back()

    def release(self) -> None:
        """Give the memory back to the device. No kernel may be using it."""
        if self._handle is None:
            return
        _call("cuMemUnmap", self._address, self._size)
        _call("cuMemRelease", self._handle)
        self._handle = None

    def close(self) -> None:
        """Give back memory and addresses once the device has done what it was given.

        Nobody may use a view of `memory` afterwards.
        """
        with whole_device(self._device):
            self.release()
            if self._address.value:
                _call("cuMemAddressFree", self._address, self._size)
                self._address = ctypes.c_uint64()

    def _back(self) -> None:
        handle = ctypes.c_uint64()
        properties = ctypes.byref(self._properties)
        _call("cuMemCreate", ctypes.byref(handle), self._size, properties, ctypes.c_uint64(0))
        _call("cuMemMap", self._address, self._size, _ZERO, handle, ctypes.c_uint64(0))
        access = _Access(self._location, _READ_WRITE)
        _call("cuMemSetAccess", self._address, self._size, ctypes.byref(access), _ONE)
        self._handle = handle

    @property
    def _size(self) -> ctypes.c_size_t:
        return ctypes.c_size_t(self._num_bytes)

    def _granularity(self) -> int:
        found = ctypes.c_size_t()
        properties = ctypes.byref(self._properties)
        _call("cuMemGetAllocationGranularity", ctypes.byref(found), properties, ctypes.c_int(0))
        return found.value


class _Bytes:
    """What `torch.as_tensor` wraps without a copy."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "data": (address, False),
            "shape": (num_bytes,),
            "typestr": "|u1",
            "version": 3,
        }


_ZERO, _ONE = ctypes.c_size_t(0), ctypes.c_size_t(1)


def _no_wish() -> tuple[ctypes.c_size_t, ctypes.c_uint64, ctypes.c_uint64]:
    """Any alignment, any address, no flags."""
    return _ZERO, ctypes.c_uint64(0), ctypes.c_uint64(0)


@cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ConfigurationError(f"the CUDA driver cannot be loaded: {error}") from error


def _call(name: str, *arguments: Any) -> None:
    status: int = getattr(_driver(), name)(*arguments)
    if status == _OUT_OF_MEMORY:
        raise torch.OutOfMemoryError(f"{name}: the device has not so much memory left")
    if status != 0:
        raise ConfigurationError(f"the CUDA driver refused {name} (CUresult {status})")
