# cython: language_level=3, boundscheck=False, wraparound=False
"""CRC-64/NVME and CRC-32C of any contiguous buffer; the arithmetic stands in ``_checksum.h``.

Both go on from an earlier value: the checksum of ``a + b`` is ``crc(b, crc(a))``. The GIL is released for long ones.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "_checksum.h" nogil:
    void s3b_checksum_init()
    uint64_t s3b_crc64(uint64_t value, const unsigned char *data, size_t length, int by_table)
    uint32_t s3b_crc32c(uint32_t value, const unsigned char *data, size_t length, int by_table)

cdef enum:
    # Bytes below which letting others run costs more than the sum.
    _LONG = 262144

s3b_checksum_init()


def crc64nvme(data, uint64_t value=0, *, bint by_table=False):
    """Return the CRC-64/NVME; ``by_table``: without special instructions."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    if view.len < _LONG:
        value = s3b_crc64(value, <const unsigned char *>view.buf, view.len, by_table)
    else:
        with nogil:
            value = s3b_crc64(value, <const unsigned char *>view.buf, view.len, by_table)
    PyBuffer_Release(&view)
    return value


def crc32c(data, uint32_t value=0, *, bint by_table=False):
    """Return the CRC-32C; ``by_table``: without special instructions."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    if view.len < _LONG:
        value = s3b_crc32c(value, <const unsigned char *>view.buf, view.len, by_table)
    else:
        with nogil:
            value = s3b_crc32c(value, <const unsigned char *>view.buf, view.len, by_table)
    PyBuffer_Release(&view)
    return value
