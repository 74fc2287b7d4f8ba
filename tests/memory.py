"""The memory that this process has allocated."""

import ctypes


def in_use():
    """MiB that are allocated: not the peak, under which a leak could hide, nor what the allocator keeps of the freed."""
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

    class Mallinfo2(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

    mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    mallinfo2.restype = Mallinfo2
    of_process = mallinfo2()
    return (of_process.uordblks + of_process.hblkhd) / 2**20
