# Part of _fast.pyx: the zero scan, block offset math and bitmaps, as C functions and for Python.

# ── zero scan ────────────────────────────────────────────────────────────────────────────────────────────────

cdef bint all_zero(const unsigned char *data, Py_ssize_t length) noexcept nogil:
    return s3b_zero(data, length)


def is_zero(data):
    """Return whether all bytes of a buffer are zero."""
    cdef Py_buffer view
    cdef bint result
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    if view.len < _LONG_SCAN:
        result = s3b_zero(<const unsigned char *>view.buf, view.len)
    else:
        with nogil:
            result = s3b_zero(<const unsigned char *>view.buf, view.len)
    PyBuffer_Release(&view)
    return result


def is_zero_baseline(data):
    """Return the same without wider instructions: what CPUs run that have none."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    cdef bint result = s3b_zero_baseline(<const unsigned char *>view.buf, view.len)
    PyBuffer_Release(&view)
    return result


# ── block offset math ────────────────────────────────────────────────────────────────────────────────────────

cdef int _shift_of(Py_ssize_t block_size) except -1:
    if block_size < _SECTOR or block_size & (block_size - 1):
        raise ValueError(f"block size {block_size} is not a power of two of at least {_SECTOR}")
    return s3b_lowest(<uint64_t>block_size)


def split(uint64_t offset, Py_ssize_t length, Py_ssize_t block_size):
    """Return (block, start, stop) of each piece of [offset, offset + length); start and stop are bytes in the block."""
    cdef int shift = _shift_of(block_size)
    cdef uint64_t end
    cdef Py_ssize_t start, stop
    if length < 0 or offset > <uint64_t>0x7FFFFFFFFFFFFFFF - <uint64_t>length:
        raise ValueError(f"there is no range of {length} bytes at {offset}")
    end = offset + <uint64_t>length
    pieces = []
    while offset < end:
        start = offset & (block_size - 1)
        stop = min(<uint64_t>block_size, start + (end - offset))
        pieces.append((offset >> shift, start, stop))
        offset += stop - start
    return pieces


# ── bitmaps ──────────────────────────────────────────────────────────────────────────────────────────────────

cdef inline unsigned char _mask(Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Bits [start, stop) of one byte, 0 ≤ start ≤ stop ≤ 8."""
    return <unsigned char>((0xFF << start) & (0xFF >> (8 - stop)))


cdef void set_bits(unsigned char *bitmap, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t first = start >> 3, last = stop >> 3
    if start >= stop:
        return
    if first == last:
        bitmap[first] |= _mask(start & 7, stop & 7)
        return
    bitmap[first] |= _mask(start & 7, 8)
    memset(bitmap + first + 1, 0xFF, last - first - 1)
    if stop & 7:
        bitmap[last] |= _mask(0, stop & 7)


cdef void clear_bits(unsigned char *bitmap, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t first = start >> 3, last = stop >> 3
    if start >= stop:
        return
    if first == last:
        bitmap[first] &= ~_mask(start & 7, stop & 7)
        return
    bitmap[first] &= ~_mask(start & 7, 8)
    memset(bitmap + first + 1, 0, last - first - 1)
    if stop & 7:
        bitmap[last] &= ~_mask(0, stop & 7)


cdef Py_ssize_t count_bits(const unsigned char *bitmap, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef Py_ssize_t first = start >> 3, last = stop >> 3, count
    if start >= stop:
        return 0
    if first == last:
        return s3b_popcount(bitmap[first] & _mask(start & 7, stop & 7))
    count = s3b_popcount(bitmap[first] & _mask(start & 7, 8))
    first += 1
    while last - first >= 8:
        count += s3b_popcount(s3b_bits(bitmap + first))
        first += 8
    while first < last:
        count += s3b_popcount(bitmap[first])
        first += 1
    if stop & 7:
        count += s3b_popcount(bitmap[last] & _mask(0, stop & 7))
    return count


cdef Py_ssize_t next_bit(const unsigned char *bitmap, Py_ssize_t start, Py_ssize_t stop, bint wanted) noexcept nogil:
    """Return the first bit in [start, stop) that is set (``wanted``) or clear (not), else stop."""
    cdef uint64_t flip = 0 if wanted else ~<uint64_t>0, word
    cdef Py_ssize_t at = start
    while at < stop:
        if at & 7 == 0 and stop - at >= 64:
            word = s3b_bits(bitmap + (at >> 3)) ^ flip
            if word == 0:
                at += 64
                continue
            return at + s3b_lowest(word)
        word = ((bitmap[at >> 3] ^ flip) & 0xFF) >> (at & 7)
        if word:
            at += s3b_lowest(word)
            return at if at < stop else stop
        at = (at | 7) + 1
    return stop


cdef unsigned char *_hold(Py_buffer *view, bitmap, Py_ssize_t start, Py_ssize_t stop, int flags) except? NULL:
    """Take hold of a caller's bitmap; the caller releases it."""
    PyObject_GetBuffer(bitmap, view, flags)
    if not 0 <= start <= stop <= 8 * view.len:
        PyBuffer_Release(view)
        raise IndexError(f"bits {start} to {stop} are not in the bitmap")
    return <unsigned char *>view.buf


def bitmap_set(bitmap, Py_ssize_t start, Py_ssize_t stop):
    """Set bits [start, stop)."""
    cdef Py_buffer view
    set_bits(_hold(&view, bitmap, start, stop, PyBUF_WRITABLE), start, stop)
    PyBuffer_Release(&view)


def bitmap_clear(bitmap, Py_ssize_t start, Py_ssize_t stop):
    """Clear bits [start, stop)."""
    cdef Py_buffer view
    clear_bits(_hold(&view, bitmap, start, stop, PyBUF_WRITABLE), start, stop)
    PyBuffer_Release(&view)


def bitmap_all(bitmap, Py_ssize_t start, Py_ssize_t stop):
    """Return whether all bits of [start, stop) are set."""
    return bitmap_next_clear(bitmap, start, stop) == stop


def bitmap_any(bitmap, Py_ssize_t start, Py_ssize_t stop):
    """Return whether a bit of [start, stop) is set."""
    return bitmap_next_set(bitmap, start, stop) < stop


def bitmap_count(bitmap, Py_ssize_t start, Py_ssize_t stop):
    """Return how many bits of [start, stop) are set."""
    cdef Py_buffer view
    cdef Py_ssize_t count = count_bits(_hold(&view, bitmap, start, stop, PyBUF_SIMPLE), start, stop)
    PyBuffer_Release(&view)
    return count


def bitmap_next_clear(bitmap, Py_ssize_t start, Py_ssize_t stop):
    """Return the first clear bit in [start, stop), else stop."""
    cdef Py_buffer view
    cdef Py_ssize_t found = next_bit(_hold(&view, bitmap, start, stop, PyBUF_SIMPLE), start, stop, False)
    PyBuffer_Release(&view)
    return found


def bitmap_next_set(bitmap, Py_ssize_t start, Py_ssize_t stop):
    """Return the first set bit in [start, stop), else stop."""
    cdef Py_buffer view
    cdef Py_ssize_t found = next_bit(_hold(&view, bitmap, start, stop, PyBUF_SIMPLE), start, stop, True)
    PyBuffer_Release(&view)
    return found


def writable_bytes(Py_ssize_t length):
    """Return (bytes of this length with unknown content, a view to fill them by). Nobody else may see them before."""
    if length < 2:
        raise ValueError("shared objects are not to be filled")
    body = PyBytes_FromStringAndSize(NULL, length)
    return body, PyMemoryView_FromMemory(PyBytes_AS_STRING(body), length, PyBUF_WRITE)
