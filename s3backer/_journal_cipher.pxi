# Part of _journal.pyx: AES-256-GCM by the process's own libcrypto, whose functions are called by their addresses.
# Source: OpenSSL's EVP_EncryptInit(3).

cdef enum:
    _GCM_GET_TAG = 0x10
    _GCM_SET_TAG = 0x11
    _TAG = 16
    _KEY = 32
    # What of a record is authenticated with its data: all but the CRCs.
    _AUTHENTICATED = 56


cdef learn_crypto(Crypto *crypto, functions):
    """Fill in the addresses of the functions, in the order in which they are declared, and of the cipher."""
    cdef uintptr_t create, dispose, encrypt_init, encrypt_update, encrypt_final
    cdef uintptr_t decrypt_init, decrypt_update, decrypt_final, control, cipher
    create, dispose, encrypt_init, encrypt_update, encrypt_final, *others = functions
    decrypt_init, decrypt_update, decrypt_final, control, cipher = others
    crypto.new_context, crypto.free_context = <CryptoNew><void *>create, <CryptoFree><void *>dispose
    crypto.encrypt_init, crypto.decrypt_init = <CryptoInit><void *>encrypt_init, <CryptoInit><void *>decrypt_init
    crypto.encrypt_update = <CryptoUpdate><void *>encrypt_update
    crypto.decrypt_update = <CryptoUpdate><void *>decrypt_update
    crypto.encrypt_final, crypto.decrypt_final = <CryptoFinal><void *>encrypt_final, <CryptoFinal><void *>decrypt_final
    crypto.control, crypto.cipher = <CryptoControl><void *>control, <const void *>cipher


cdef inline void make_nonce(unsigned char *nonce, uint64_t number) noexcept nogil:
    """Twelve bytes that no other record with the same key has: its number, big-endian."""
    cdef uint64_t swapped = htobe64(number)
    memset(nonce, 0, 4)
    memcpy(nonce + 4, &swapped, 8)


cdef bint encrypt(
    const Crypto *crypto, void *context, const DiskRecord *record, const unsigned char *data, Py_ssize_t length,
    unsigned char *out
) noexcept nogil:
    """Encrypt a record's data; ``out`` gets it and its tag. The context has the file's key."""
    cdef unsigned char nonce[12]
    cdef int count
    make_nonce(nonce, le64toh(record.number))
    return (
        crypto.encrypt_init(context, NULL, NULL, NULL, nonce) == 1
        and crypto.encrypt_update(context, NULL, &count, <const unsigned char *>record, _AUTHENTICATED) == 1
        and crypto.encrypt_update(context, out, &count, data, <int>length) == 1
        and crypto.encrypt_final(context, out + length, &count) == 1
        and crypto.control(context, _GCM_GET_TAG, _TAG, out + length) == 1
    )


cdef bint decrypt(
    const Crypto *crypto, const unsigned char *key, const DiskRecord *record, Py_ssize_t length, unsigned char *out
) noexcept nogil:
    """Decrypt what stands behind a record; False if it is not what was encrypted there."""
    cdef unsigned char nonce[12]
    cdef const unsigned char *data = <const unsigned char *>(record + 1)
    cdef int count
    cdef bint right
    cdef void *context = crypto.new_context()
    if not context:
        return False
    make_nonce(nonce, le64toh(record.number))
    right = (
        crypto.decrypt_init(context, crypto.cipher, NULL, key, nonce) == 1
        and crypto.decrypt_update(context, NULL, &count, <const unsigned char *>record, _AUTHENTICATED) == 1
        and crypto.decrypt_update(context, out, &count, data, <int>length) == 1
        and crypto.control(context, _GCM_SET_TAG, _TAG, <void *>(data + length)) == 1
        and crypto.decrypt_final(context, out + length, &count) == 1
    )
    crypto.free_context(context)
    return right
