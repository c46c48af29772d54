/* Frames a turn's pieces and sends them to many sockets in one call.
 *
 * Must not know: quotes, or which client a descriptor belongs to. Optional: server/outlets/direct.py does the same
 * in Python where this is not built. Plain CPython API, Python 3.11 and later, no dependency.
 *
 * A turn of one client is a list of pieces. How its codec joins them is one of codecs.Joint: each is a
 * frame already; or they become one text frame with a JSON array (RFC 6455, section 5.2), as
 * JsonCodec.frames makes it; or the same in DEFLATE blocks, as DeflatedJson.frames does. Clients
 * whose pieces are the very same objects share the bytes. For TLS the OpenSSL that pyOpenSSL has
 * loaded is called, by the addresses given, so that one OpenSSL serves both.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

typedef int (*ssl_write_t)(void *ssl, const void *data, int length);
typedef int (*bio_read_t)(void *bio, void *data, int length);

static ssl_write_t ssl_write;
static bio_read_t bio_read;

/* With what TLS adds, ENCRYPTED_AT_ONCE fits into the buffer, whole records at a time. */
enum { CIPHERTEXT_SIZE = 128 * 1024, ENCRYPTED_AT_ONCE = 96 * 1024 };
static char ciphertext[CIPHERTEXT_SIZE];

/* How many bytes of `data` the kernel took: 0 where it takes none for now, -1 where the connection
 * is broken. */
static Py_ssize_t
send_now(int descriptor, const char *data, Py_ssize_t length)
{
    for (;;) {
        ssize_t sent = send(descriptor, data, (size_t)length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0)
            return sent;
        if (errno == EINTR)
            continue;
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -1;
    }
}

/* The numbers of codecs.Joint. */
enum { FRAMES = 0, ARRAY = 1, DEFLATED = 2 };

/* The bytes of the turn that was framed last, and the pieces that they carry: borrowed, and valid
 * only within one call of send_plain or send_tls. */
static struct {
    char *data;
    size_t length;
    char *memory;
    size_t capacity;
    PyObject **pieces;
    Py_ssize_t count;
    size_t pieces_capacity;
    int joint;
} framed;

enum { KEEP_CAPACITY = 4 * 1024 * 1024, LONGEST_HEAD = 10 };

static int
reserve(void **memory, size_t *capacity, size_t wanted)
{
    void *larger;

    if (wanted <= *capacity)
        return 1;
    larger = PyMem_Realloc(*memory, wanted + wanted / 2);
    if (larger == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    *memory = larger;
    *capacity = wanted + wanted / 2;
    return 1;
}

/* The head of an unmasked final frame, as frames.frame_head makes it. */
static size_t
put_head(unsigned char *to, unsigned char first, size_t length)
{
    to[0] = first;
    if (length < 126) {
        to[1] = (unsigned char)length;
        return 2;
    }
    if (length < 65536) {
        to[1] = 126;
        to[2] = (unsigned char)(length >> 8);
        to[3] = (unsigned char)length;
        return 4;
    }
    to[1] = 127;
    for (int at = 0; at < 8; at++)
        to[2 + at] = (unsigned char)((uint64_t)length >> (56 - 8 * at));
    return 10;
}

static char *
put(char *to, const char *from, size_t size)
{
    memcpy(to, from, size);
    return to + size;
}

/* What stands around a stored block's data (RFC 1951, section 3.2.4) in a piece that deflate.stored
 * makes: before it a header, LEN and NLEN, after it the header of an empty block. */
enum { STORED_BEFORE = 5, STORED_AROUND = 6, MOST_STORED = 65535 };

/* Whether a piece is such a one, which its text can be taken out of. */
static int
is_stored(const char *piece, size_t size)
{
    const unsigned char *byte = (const unsigned char *)piece;

    return size >= STORED_AROUND && byte[0] == 0 &&
           (size_t)(byte[1] | byte[2] << 8) == size - STORED_AROUND;
}

/* Where the next byte goes, and where LEN and NLEN of the stored block that it belongs to are, if it
 * belongs to one. */
struct blocks {
    char *to;
    char *run;
};

static void
end_run(struct blocks *blocks)
{
    unsigned size = (unsigned)(blocks->to - blocks->run - 4);

    blocks->run[0] = (char)size;
    blocks->run[1] = (char)(size >> 8);
    blocks->run[2] = (char)~size;
    blocks->run[3] = (char)(~size >> 8);
    blocks->run = NULL;
}

/* Append text to a stored block, or to several: of the first the header is there already. */
static void
put_text(struct blocks *blocks, const char *text, size_t size)
{
    while (size > 0) {
        size_t here;

        if (blocks->run != NULL && blocks->to - blocks->run - 4 == MOST_STORED) {
            end_run(blocks);
            *blocks->to++ = 0;
        }
        if (blocks->run == NULL) {
            blocks->run = blocks->to;
            blocks->to += 4;
        }
        here = (size_t)(MOST_STORED - (blocks->to - blocks->run - 4));
        here = size < here ? size : here;
        blocks->to = put(blocks->to, text, here);
        text += here;
        size -= here;
    }
}

/* A JSON array of the pieces' events in DEFLATE blocks; returns the end. */
static char *
put_blocks(char *to, PyObject **items, Py_ssize_t count)
{
    struct blocks blocks = {to, NULL};

    *blocks.to++ = 0;
    put_text(&blocks, "[", 1);
    for (Py_ssize_t at = 0; at < count; at++) {
        const char *piece = PyBytes_AS_STRING(items[at]);
        size_t size = (size_t)PyBytes_GET_SIZE(items[at]);

        if (at > 0)
            put_text(&blocks, ",", 1);
        if (is_stored(piece, size)) {
            put_text(&blocks, piece + STORED_BEFORE, size - STORED_AROUND);
        } else {
            end_run(&blocks);
            blocks.to = put(blocks.to, piece, size);
        }
    }
    put_text(&blocks, "]", 1);
    end_run(&blocks);
    *blocks.to++ = 0;
    return blocks.to;
}

/* The same as text, where each piece has so many bytes before and around its event. */
static char *
put_array(char *to, PyObject **items, Py_ssize_t count, size_t before, size_t around)
{
    *to++ = '[';
    for (Py_ssize_t at = 0; at < count; at++) {
        if (at > 0)
            *to++ = ',';
        to = put(to, PyBytes_AS_STRING(items[at]) + before,
                 (size_t)PyBytes_GET_SIZE(items[at]) - around);
    }
    *to++ = ']';
    return to;
}

/* Fill `framed` from a list of pieces; false on a Python error. */
static int
frame_turn(PyObject *pieces, int joint)
{
    int all_stored = joint == DEFLATED;
    Py_ssize_t count = PyList_GET_SIZE(pieces);
    PyObject **items = ((PyListObject *)pieces)->ob_item;
    size_t length = 0;
    unsigned char head[LONGEST_HEAD];
    char *body, *to;

    if (joint < FRAMES || joint > DEFLATED) {
        PyErr_SetString(PyExc_ValueError, "pieces are not joined in this way");
        return 0;
    }
    if (count == framed.count && joint == framed.joint && count > 0 &&
        memcmp(items, framed.pieces, (size_t)count * sizeof *items) == 0)
        return 1;
    framed.count = 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        if (!PyBytes_CheckExact(items[at])) {
            PyErr_SetString(PyExc_TypeError, "a piece is bytes");
            return 0;
        }
        length += (size_t)PyBytes_GET_SIZE(items[at]);
        if (all_stored)
            all_stored = is_stored(PyBytes_AS_STRING(items[at]),
                                   (size_t)PyBytes_GET_SIZE(items[at]));
    }
    /* A comma, LEN and NLEN for each piece, a header more for each stored block that is full, and
     * what is around them all. */
    length += (size_t)count * 5 + length / MOST_STORED * 5 + 16;
    if (!reserve((void **)&framed.memory, &framed.capacity, LONGEST_HEAD + length) ||
        !reserve((void **)&framed.pieces, &framed.pieces_capacity, (size_t)count * sizeof *items))
        return 0;
    /* The head goes right before the body, once its length is known. */
    framed.data = to = body = framed.memory + LONGEST_HEAD;
    if (joint == FRAMES) {
        for (Py_ssize_t at = 0; at < count; at++)
            to = put(to, PyBytes_AS_STRING(items[at]), (size_t)PyBytes_GET_SIZE(items[at]));
    } else {
        int compressed = joint == DEFLATED && !all_stored;
        size_t size;

        if (compressed)
            to = put_blocks(body, items, count);
        else if (all_stored)
            to = put_array(body, items, count, STORED_BEFORE, STORED_AROUND);
        else
            to = put_array(body, items, count, 0, 0);
        size = put_head(head, compressed ? 0xC1 : 0x81, (size_t)(to - body));
        framed.data = body - size;
        memcpy(framed.data, head, size);
    }
    framed.length = (size_t)(to - framed.data);
    memcpy(framed.pieces, items, (size_t)count * sizeof *items);
    framed.count = count;
    framed.joint = joint;
    return 1;
}

/* The pieces are borrowed no longer than a call lasts. */
static void
forget_framed(void)
{
    framed.count = 0;
    if (framed.capacity > KEEP_CAPACITY) {
        PyMem_Free(framed.memory);
        framed.memory = NULL;
        framed.capacity = 0;
    }
}

/* What a call counts and reports. */
struct outcome {
    Py_ssize_t frames;
    Py_ssize_t pieces;
    Py_ssize_t bytes;
    PyObject *unsent;
};

/* Append `entry`, which is stolen, to what was not sent; false on a Python error. */
static int
note(struct outcome *outcome, PyObject *entry)
{
    int failed;

    if (entry == NULL)
        return 0;
    if (outcome->unsent == NULL)
        outcome->unsent = PyList_New(0);
    failed = outcome->unsent == NULL || PyList_Append(outcome->unsent, entry) < 0;
    Py_DECREF(entry);
    return !failed;
}

/* Clear every list of pieces and make the result; on failure too, so that nothing is sent twice. */
static PyObject *
finish(struct outcome *outcome, PyObject *turns, int failed)
{
    PyObject *type, *value, *traceback;

    PyErr_Fetch(&type, &value, &traceback);
    forget_framed();
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(turns); at++) {
        PyObject *pieces = PyList_GET_ITEM(turns, at);
        if (PyList_CheckExact(pieces))
            PyList_SetSlice(pieces, 0, PyList_GET_SIZE(pieces), NULL);
    }
    PyErr_Restore(type, value, traceback);
    if (failed) {
        Py_XDECREF(outcome->unsent);
        return NULL;
    }
    if (outcome->unsent == NULL)
        outcome->unsent = Py_NewRef(Py_None);
    return Py_BuildValue("(nnnN)", outcome->frames, outcome->pieces, outcome->bytes,
                         outcome->unsent);
}

/* The turn at `at`, framed and counted; false on a Python error. */
static int
take_turn(struct outcome *outcome, PyObject *turns, Py_ssize_t at, int joint)
{
    PyObject *pieces = PyList_GET_ITEM(turns, at);

    if (!PyList_CheckExact(pieces)) {
        PyErr_SetString(PyExc_TypeError, "a turn is a list of pieces");
        return 0;
    }
    if (!frame_turn(pieces, joint))
        return 0;
    outcome->frames += joint == FRAMES ? PyList_GET_SIZE(pieces) : 1;
    outcome->pieces += PyList_GET_SIZE(pieces);
    outcome->bytes += (Py_ssize_t)framed.length;
    return 1;
}

static int
parse_lists(PyObject *args, PyObject **ways, PyObject **turns)
{
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, ways, &PyList_Type, turns))
        return 0;
    if (PyList_GET_SIZE(*ways) == PyList_GET_SIZE(*turns))
        return 1;
    PyErr_SetString(PyExc_ValueError, "the lists have different lengths");
    return 0;
}

PyDoc_STRVAR(send_plain_doc,
"send_plain(ways: list[tuple[int, int]], turns: list[list[bytes]])\n"
"    -> tuple[int, int, int, list[tuple[int, bytes | None]] | None]\n\n"
"Send each turn to the socket of the same index, without waiting, and empty it. A way is\n"
"(descriptor, one of codecs.Joint). Returns frames, pieces and bytes, and None where the\n"
"kernel took all, else (index, the rest) for each that it did not; the rest is None where the\n"
"connection is broken.");

static PyObject *
send_plain(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *ways, *turns;
    struct outcome outcome = {0, 0, 0, NULL};

    if (!parse_lists(args, &ways, &turns))
        return NULL;
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(turns); at++) {
        int descriptor, joint;
        Py_ssize_t sent;

        if (!PyArg_ParseTuple(PyList_GET_ITEM(ways, at), "ii", &descriptor, &joint) ||
            !take_turn(&outcome, turns, at, joint))
            return finish(&outcome, turns, 1);
        sent = send_now(descriptor, framed.data, (Py_ssize_t)framed.length);
        if (sent == (Py_ssize_t)framed.length)
            continue;
        if (!note(&outcome, sent < 0 ? Py_BuildValue("(nO)", at, Py_None)
                                     : Py_BuildValue("(ny#)", at, framed.data + sent,
                                                     (Py_ssize_t)framed.length - sent)))
            return finish(&outcome, turns, 1);
    }
    return finish(&outcome, turns, 0);
}

PyDoc_STRVAR(send_tls_doc,
"send_tls(ways: list[tuple[int, int, int, int]], turns: list[list[bytes]])\n"
"    -> tuple[int, int, int, list[tuple[int, bytes | None, bytes]] | None]\n\n"
"Encrypt each turn, send it and empty it. A way is (SSL pointer, BIO pointer, descriptor, one of\n"
"codecs.Joint). Returns frames, pieces and bytes, and None where all went well, else (index,\n"
"ciphertext that was not sent, what was not encrypted) for each other; the ciphertext is None where\n"
"the connection is broken.");

/* Move what OpenSSL has encrypted to the socket; what the kernel does not take goes to `*rest`, made
 * when it is needed. False on a Python error. */
static int
drain(void *bio, int descriptor, PyObject **rest, int *broken)
{
    int size;

    while ((size = bio_read(bio, ciphertext, CIPHERTEXT_SIZE)) > 0) {
        Py_ssize_t sent = 0;

        if (*broken)
            continue;
        if (*rest == NULL) {
            sent = send_now(descriptor, ciphertext, size);
            if (sent < 0) {
                *broken = 1;
                continue;
            }
        }
        if (sent < size) {
            PyObject *more = PyBytes_FromStringAndSize(ciphertext + sent, size - sent);
            if (more == NULL)
                return 0;
            if (*rest == NULL)
                *rest = more;
            else
                PyBytes_ConcatAndDel(rest, more);
            if (*rest == NULL)
                return 0;
        }
        if (size < CIPHERTEXT_SIZE)
            return 1;
    }
    return 1;
}

/* Encrypt and send `framed`; false on a Python error. */
static int
encrypt_and_send(struct outcome *outcome, Py_ssize_t at, void *ssl, void *bio, int descriptor)
{
    PyObject *rest = NULL;
    size_t done = 0, undrained = 0;
    int broken = 0;

    while (done < framed.length) {
        size_t left = framed.length - done;
        int written = ssl_write(ssl, framed.data + done, left > INT_MAX ? INT_MAX : (int)left);

        if (written <= 0)
            break;
        done += (size_t)written;
        undrained += (size_t)written;
        if (undrained >= ENCRYPTED_AT_ONCE) {
            if (!drain(bio, descriptor, &rest, &broken))
                goto failed;
            undrained = 0;
        }
    }
    if (!drain(bio, descriptor, &rest, &broken))
        goto failed;
    if (broken) {
        Py_CLEAR(rest);
        return note(outcome, Py_BuildValue("(nOy)", at, Py_None, ""));
    }
    if (done == framed.length && rest == NULL)
        return 1;
    if (rest == NULL && (rest = PyBytes_FromStringAndSize(NULL, 0)) == NULL)
        return 0;
    return note(outcome, Py_BuildValue("(nNy#)", at, rest, framed.data + done,
                                       (Py_ssize_t)(framed.length - done)));

failed:
    Py_XDECREF(rest);
    return 0;
}

static PyObject *
send_tls(PyObject *Py_UNUSED(self), PyObject *args)
{
    PyObject *ways, *turns;
    struct outcome outcome = {0, 0, 0, NULL};

    if (!parse_lists(args, &ways, &turns))
        return NULL;
    if (ssl_write == NULL || bio_read == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "use_openssl() comes first");
        return NULL;
    }
    for (Py_ssize_t at = 0; at < PyList_GET_SIZE(turns); at++) {
        unsigned long long ssl, bio;
        int descriptor, joint;

        if (!PyArg_ParseTuple(PyList_GET_ITEM(ways, at), "KKii", &ssl, &bio, &descriptor,
                              &joint) ||
            !take_turn(&outcome, turns, at, joint) ||
            !encrypt_and_send(&outcome, at, (void *)(uintptr_t)ssl, (void *)(uintptr_t)bio,
                              descriptor))
            return finish(&outcome, turns, 1);
    }
    return finish(&outcome, turns, 0);
}

PyDoc_STRVAR(use_openssl_doc,
"use_openssl(ssl_write: int, bio_read: int) -> None\n\n"
"The addresses of SSL_write and BIO_read, for send_tls.");

static PyObject *
use_openssl(PyObject *Py_UNUSED(self), PyObject *args)
{
    unsigned long long write_address, read_address;

    if (!PyArg_ParseTuple(args, "KK", &write_address, &read_address))
        return NULL;
    ssl_write = (ssl_write_t)(uintptr_t)write_address;
    bio_read = (bio_read_t)(uintptr_t)read_address;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"send_plain", send_plain, METH_VARARGS, send_plain_doc},
    {"send_tls", send_tls, METH_VARARGS, send_tls_doc},
    {"use_openssl", use_openssl, METH_VARARGS, use_openssl_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "pushservice.fanout._fanout",
    .m_doc = "Frames a turn's pieces and sends them to many sockets in one call.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__fanout(void)
{
    return PyModule_Create(&module);
}
