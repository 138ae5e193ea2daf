/* The ring and the doorbell in C. `ring.py` and `doorbell.py` say what each method means, `layout.py` shows the memory;
 * this file does the same to the same memory, so that either implementation talks to the other.
 *
 * What holds here:
 * - Shared cells are loaded with acquire and stored with release; records are written and read in between, plainly.
 * - Every position and length that came out of shared memory is loaded once, checked, and only then used.
 * - Between checking that a ring is open and the last touch of its memory no Python code can run: buffers are acquired
 *   and lists are made before. Where that is not possible (push_many), the check is repeated.
 * - The GIL is released only while waiting, and no PyObject is touched then. Free-threaded builds get the GIL back when
 *   they import this module, because it does not claim to do without.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__linux__) && defined(__LP64__) && !defined(RINGLEADER_NO_FUTEX)
#define HAVE_FUTEX 1
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* From layout.py; a test compares them. */
enum {
    RING_VERSION = 1,
    HEADER_SIZE = 512,
    RECORD_HEADER = 8,
    WORD = 8,
    TAIL = 16,
    HEAD = 32,
    CELLS = HEADER_SIZE / WORD,
    KIND_RECORD = 1,
    KIND_PADDING = 2,
};
#define MIN_CAPACITY ((uint64_t)4096)
#define MAX_CAPACITY ((uint64_t)1 << 31)
#define POSITION_LIMIT ((uint64_t)1 << 63)

typedef struct {
    PyObject *layout_error;
    PyObject *record_too_large;
    PyObject *ring_corrupt;
    PyObject *check_ring;
} State;

static State *state_of(void *object) { return PyType_GetModuleState(Py_TYPE((PyObject *)object)); }

/* Raises `type(*arguments)`; steals the arguments. */
static void raise_with(PyObject *type, PyObject *arguments)
{
    PyObject *error = arguments == NULL ? NULL : PyObject_CallObject(type, arguments);
    Py_XDECREF(arguments);
    if (error != NULL) {
        PyErr_SetObject(type, error);
        Py_DECREF(error);
    }
}

/* A writable view of `object` as bytes: the memoryview, and the buffer that it exports. */
static PyObject *export_bytes(PyObject *object, Py_buffer *buffer)
{
    PyObject *whole = PyMemoryView_FromObject(object);
    if (whole == NULL)
        return NULL;
    PyObject *view = PyObject_CallMethod(whole, "cast", "s", "B");
    Py_DECREF(whole);
    if (view != NULL && PyObject_GetBuffer(view, buffer, PyBUF_WRITABLE) < 0)
        Py_CLEAR(view);
    return view;
}

static int release_view(PyObject *view)
{
    PyObject *result = PyObject_CallMethod(view, "release", NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* ---- the ring ---------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *view;   /* memoryview of the whole buffer as bytes; NULL once closed */
    Py_buffer buffer; /* what `view` exports to us */
    uint64_t *words;  /* header and data as aligned words */
    uint8_t *data;
    unsigned long long capacity, epoch, max_record;
    uint64_t mask;
    uint64_t tail, head_seen; /* the producer's own tail, and the last head it saw */
    uint64_t head, cursor;    /* the consumer's own head and cursor */
    PyObject *reserved;
    uint64_t reserved_end;
} Ring;

static inline uint64_t load(const Ring *ring, Py_ssize_t cell)
{
    return __atomic_load_n(&ring->words[cell], __ATOMIC_ACQUIRE);
}

static inline void store(Ring *ring, Py_ssize_t cell, uint64_t value)
{
    __atomic_store_n(&ring->words[cell], value, __ATOMIC_RELEASE);
}

static inline uint64_t framed(uint64_t size) { return (RECORD_HEADER + size + WORD - 1) & ~(uint64_t)(WORD - 1); }

static void raise_corrupt(Ring *ring, uint64_t position, uint64_t value, const char *reason)
{
    raise_with(state_of(ring)->ring_corrupt,
               Py_BuildValue("(KKs)", (unsigned long long)position, (unsigned long long)value, reason));
}

static int require_open(const Ring *ring)
{
    if (ring->view != NULL)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the ring is closed");
    return -1;
}

static int require_no_reservation(const Ring *ring)
{
    if (require_open(ring) < 0)
        return -1;
    if (ring->reserved == NULL)
        return 0;
    PyErr_Format(PyExc_RuntimeError, "%zd bytes are reserved in this ring: commit or abandon them first",
                 PyObject_Size(ring->reserved));
    return -1;
}

static int load_position(Ring *ring, Py_ssize_t cell, uint64_t *position)
{
    *position = load(ring, cell);
    if (*position < POSITION_LIMIT && *position % WORD == 0)
        return 0;
    raise_corrupt(ring, 0, *position, cell == HEAD ? "the head is not a position" : "the tail is not a position");
    return -1;
}

static int load_tail(Ring *ring, uint64_t *tail)
{
    if (load_position(ring, TAIL, tail) < 0)
        return -1;
    if (ring->cursor <= *tail && *tail - ring->head <= ring->capacity)
        return 0;
    raise_corrupt(ring, ring->cursor, *tail, "the tail is not within one capacity of the head");
    return -1;
}

static int ring_let_go(Ring *ring)
{
    if (ring->reserved != NULL) {
        if (release_view(ring->reserved) < 0)
            return -1;
        Py_CLEAR(ring->reserved);
    }
    if (ring->view != NULL) {
        PyObject *view = ring->view;
        ring->view = NULL;
        ring->words = NULL;
        ring->data = NULL;
        PyBuffer_Release(&ring->buffer);
        int status = release_view(view);
        Py_DECREF(view);
        return status;
    }
    return 0;
}

static int ring_map(Ring *ring, PyObject *object)
{
    State *state = state_of(ring);
    ring->view = export_bytes(object, &ring->buffer);
    if (ring->view == NULL)
        return -1;
    PyObject *header = PyObject_CallFunctionObjArgs(state->check_ring, ring->view, NULL);
    if (header == NULL)
        return -1;
    int parsed = PyArg_ParseTuple(header, "KK", &ring->capacity, &ring->epoch);
    Py_DECREF(header);
    if (!parsed)
        return -1;
    uintptr_t address = (uintptr_t)ring->buffer.buf;
    if (address % WORD != 0) {
        raise_with(state->layout_error, Py_BuildValue("(ssKs)", "ring", "address of the buffer",
                                                      (unsigned long long)address, "a multiple of 8"));
        return -1;
    }
    /* check_ring has seen to this; everything below relies on it. */
    if (ring->capacity < MIN_CAPACITY || ring->capacity > MAX_CAPACITY || (ring->capacity & (ring->capacity - 1)) ||
        (uint64_t)ring->buffer.len < HEADER_SIZE + ring->capacity) {
        raise_with(state->layout_error,
                   Py_BuildValue("(ssKs)", "ring", "capacity", ring->capacity, "what check_ring accepts"));
        return -1;
    }
    ring->words = ring->buffer.buf;
    ring->data = (uint8_t *)ring->buffer.buf + HEADER_SIZE;
    ring->mask = ring->capacity - 1;
    ring->max_record = ring->capacity / 2 - RECORD_HEADER;
    if (load_position(ring, HEAD, &ring->head) < 0 || load_position(ring, TAIL, &ring->tail) < 0)
        return -1;
    ring->cursor = ring->head;
    ring->head_seen = ring->tail - ring->capacity; /* as if full: the first push looks at the head */
    return 0;
}

static PyObject *Ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *object;
    if (kwargs != NULL && PyDict_Size(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "Ring() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O:Ring", &object))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Ring *ring = (Ring *)alloc(type, 0);
    if (ring != NULL && ring_map(ring, object) < 0)
        Py_CLEAR(ring);
    return (PyObject *)ring;
}

static void Ring_dealloc(Ring *ring)
{
    PyObject *type_, *value, *traceback;
    PyErr_Fetch(&type_, &value, &traceback);
    if (ring_let_go(ring) < 0) {
        /* Somebody exports the reserved view, and by it keeps the memory alive. */
        PyErr_Clear();
        Py_CLEAR(ring->reserved);
        (void)ring_let_go(ring);
        PyErr_Clear();
    }
    PyErr_Restore(type_, value, traceback);
    PyTypeObject *type = Py_TYPE((PyObject *)ring);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(ring);
    Py_DECREF(type);
}

/* Where a record of `size` goes when the tail is `tail`; header and padding are written.
 * 1: at `*start`; 0: no room; -1: an error is set. Runs no Python code unless it fails. */
static inline int place(Ring *ring, uint64_t tail, uint64_t size, uint64_t *start)
{
    if (size > ring->max_record) {
        raise_with(state_of(ring)->record_too_large,
                   Py_BuildValue("(KK)", (unsigned long long)size, ring->max_record));
        return -1;
    }
    uint64_t index = tail & ring->mask;
    uint64_t left = ring->capacity - index;
    uint64_t total = framed(size);
    uint64_t skip = left < total ? left : 0;
    uint64_t end = tail + skip + total;
    if (end - ring->head_seen > ring->capacity) {
        uint64_t head;
        if (load_position(ring, HEAD, &head) < 0)
            return -1;
        if (head > ring->tail || ring->tail - head > ring->capacity) {
            raise_corrupt(ring, ring->tail, head, "the head is not within one capacity of the tail");
            return -1;
        }
        ring->head_seen = head;
        if (end - head > ring->capacity)
            return 0;
    }
    if (skip != 0) {
        ring->words[CELLS + index / WORD] = (skip - RECORD_HEADER) | (uint64_t)KIND_PADDING << 32;
        index = 0;
    }
    ring->words[CELLS + index / WORD] = size | (uint64_t)KIND_RECORD << 32;
    *start = tail + skip;
    return 1;
}

static inline uint8_t *payload_at(const Ring *ring, uint64_t start)
{
    return ring->data + (start & ring->mask) + RECORD_HEADER;
}

static inline void publish(Ring *ring, uint64_t tail)
{
    ring->tail = tail;
    store(ring, TAIL, tail);
}

/* The bytes of an exact bytes object. */
static inline const char *bytes_of(PyObject *object, uint64_t *size)
{
    char *content;
    Py_ssize_t length;
    (void)PyBytes_AsStringAndSize(object, &content, &length);
    *size = (uint64_t)length;
    return content;
}

static PyObject *Ring_push(Ring *ring, PyObject *const *parts, Py_ssize_t count)
{
    uint64_t size = 0, start;
    if (require_no_reservation(ring) < 0)
        return NULL;
    if (count == 1 && PyBytes_CheckExact(parts[0])) {
        const char *content = bytes_of(parts[0], &size);
        int placed = place(ring, ring->tail, size, &start);
        if (placed > 0) {
            memcpy(payload_at(ring, start), content, size);
            publish(ring, start + framed(size));
        }
        return placed < 0 ? NULL : PyBool_FromLong(placed);
    }
    Py_buffer few[8];
    Py_buffer *buffers = count <= 8 ? few : PyMem_Calloc((size_t)count, sizeof(Py_buffer));
    if (buffers == NULL)
        return PyErr_NoMemory();
    Py_ssize_t acquired = 0;
    int placed = -1;
    for (; acquired < count; acquired++) {
        if (PyObject_GetBuffer(parts[acquired], &buffers[acquired], PyBUF_SIMPLE) < 0)
            goto done;
        size += (uint64_t)buffers[acquired].len;
    }
    if (require_no_reservation(ring) < 0) /* again: an exporter may be Python code */
        goto done;
    placed = place(ring, ring->tail, size, &start);
    if (placed > 0) {
        uint8_t *at = payload_at(ring, start);
        for (Py_ssize_t i = 0; i < count; i++) {
            if (buffers[i].len > 0)
                memcpy(at, buffers[i].buf, (size_t)buffers[i].len);
            at += buffers[i].len;
        }
        publish(ring, start + framed(size));
    }
done:
    while (acquired > 0)
        PyBuffer_Release(&buffers[--acquired]);
    if (buffers != few)
        PyMem_Free(buffers);
    return placed < 0 ? NULL : PyBool_FromLong(placed);
}

/* An exporter that is Python code may have used the ring in the meantime. */
static int require_untouched(const Ring *ring, uint64_t tail)
{
    if (require_no_reservation(ring) < 0)
        return -1;
    if (ring->tail == tail)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "the ring was pushed to while records for it were being looked at");
    return -1;
}

static int push_other(Ring *ring, PyObject *record, uint64_t *tail)
{
    Py_buffer buffer;
    uint64_t before = ring->tail, start;
    Py_INCREF(record); /* the list may lose it while the exporter runs */
    int placed = -1;
    if (PyObject_GetBuffer(record, &buffer, PyBUF_SIMPLE) == 0) {
        if (require_untouched(ring, before) == 0) {
            placed = place(ring, *tail, (uint64_t)buffer.len, &start);
            if (placed > 0) {
                if (buffer.len > 0)
                    memcpy(payload_at(ring, start), buffer.buf, (size_t)buffer.len);
                *tail = start + framed((uint64_t)buffer.len);
            }
        }
        if (placed >= 0) {
            PyBuffer_Release(&buffer);
            if (require_untouched(ring, before) < 0)
                placed = -1;
        } else {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            PyBuffer_Release(&buffer);
            PyErr_Restore(type, value, traceback);
        }
    }
    Py_DECREF(record);
    return placed;
}

static PyObject *Ring_push_many(Ring *ring, PyObject *records)
{
    if (require_no_reservation(ring) < 0)
        return NULL;
    PyObject *sequence = PySequence_Fast(records, "push_many() takes an iterable of records");
    if (sequence == NULL)
        return NULL;
    int list = PyList_CheckExact(sequence) || !PyTuple_Check(sequence);
    Py_ssize_t count = PySequence_Size(sequence), pushed = 0;
    int placed = 1;
    if (count < 0 || require_no_reservation(ring) < 0) { /* again: the iterable may have been Python code */
        Py_DECREF(sequence);
        return NULL;
    }
    uint64_t tail = ring->tail, size, start;
    for (; pushed < count; pushed++) {
        PyObject *record = list ? PyList_GetItem(sequence, pushed) : PyTuple_GetItem(sequence, pushed);
        if (record == NULL) {
            placed = -1;
            break;
        }
        if (PyBytes_CheckExact(record)) {
            const char *content = bytes_of(record, &size);
            placed = place(ring, tail, size, &start);
            if (placed <= 0)
                break;
            memcpy(payload_at(ring, start), content, size);
            tail = start + framed(size);
        } else {
            placed = push_other(ring, record, &tail);
            if (placed <= 0)
                break;
        }
    }
    if (placed >= 0 && pushed > 0)
        publish(ring, tail);
    Py_DECREF(sequence);
    return placed < 0 ? NULL : PyLong_FromSsize_t(pushed);
}

static PyObject *Ring_reserve(Ring *ring, PyObject *argument)
{
    uint64_t start;
    Py_ssize_t size = PyNumber_AsSsize_t(argument, NULL);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    if (require_no_reservation(ring) < 0)
        return NULL;
    if (size < 0)
        return PyErr_Format(PyExc_ValueError, "a record cannot have %zd bytes", size);
    int placed = place(ring, ring->tail, (uint64_t)size, &start);
    if (placed < 0)
        return NULL;
    if (placed == 0)
        Py_RETURN_NONE;
    Py_ssize_t at = HEADER_SIZE + (Py_ssize_t)(start & ring->mask) + RECORD_HEADER;
    PyObject *reserved = PySequence_GetSlice(ring->view, at, at + size);
    if (reserved == NULL)
        return NULL;
    ring->reserved = reserved;
    ring->reserved_end = start + framed((uint64_t)size);
    Py_INCREF(reserved);
    return reserved;
}

static int ring_abandon(Ring *ring)
{
    if (require_open(ring) < 0)
        return -1;
    if (ring->reserved == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "nothing is reserved in this ring");
        return -1;
    }
    if (release_view(ring->reserved) < 0)
        return -1;
    Py_CLEAR(ring->reserved);
    return 0;
}

static PyObject *Ring_commit(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    if (ring_abandon(ring) < 0)
        return NULL;
    publish(ring, ring->reserved_end);
    Py_RETURN_NONE;
}

static PyObject *Ring_abandon(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    if (ring_abandon(ring) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* What is wrong with this record header at `index`, given that something is. */
static const char *problem(const Ring *ring, uint64_t word, uint64_t index, uint64_t *value)
{
    uint64_t kind = word >> 32, length = word & UINT32_MAX;
    *value = length;
    if (kind != KIND_RECORD && kind != KIND_PADDING) {
        *value = kind;
        return "unknown kind of record";
    }
    if (kind == KIND_PADDING && index + RECORD_HEADER + length != ring->capacity)
        return "padding does not end where the data ends";
    if (kind == KIND_RECORD && length > ring->max_record)
        return "the record is longer than the limit";
    if (kind == KIND_RECORD && index + framed(length) > ring->capacity)
        return "the record runs past the end of the data";
    return "the record runs past the tail";
}

static PyObject *Ring_take_many(Ring *ring, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2)
        return PyErr_Format(PyExc_TypeError, "take_many() takes 2 arguments, not %zd", nargs);
    Py_ssize_t max_records = PyNumber_AsSsize_t(args[0], NULL);
    if (max_records == -1 && PyErr_Occurred())
        return NULL;
    Py_ssize_t room = PyNumber_AsSsize_t(args[1], NULL);
    if (room == -1 && PyErr_Occurred())
        return NULL;
    PyObject *taken = PyList_New(0); /* before anything else: it may collect garbage */
    if (taken == NULL)
        return NULL;
    uint64_t tail;
    if (require_open(ring) < 0 || load_tail(ring, &tail) < 0)
        goto failed;
    const uint64_t capacity = ring->capacity, mask = ring->mask, limit = ring->max_record;
    uint64_t cursor = ring->cursor;
    Py_ssize_t count = 0;
    while (cursor < tail && count < max_records) {
        uint64_t index = cursor & mask;
        uint64_t word = ring->words[CELLS + index / WORD]; /* loaded once: it may be changing */
        uint64_t length = word & UINT32_MAX, total = framed(length);
        if (word >> 32 == KIND_RECORD && length <= limit && index + total <= capacity && total <= tail - cursor) {
            if (count > 0 && (Py_ssize_t)length > room)
                break;
            PyObject *record =
                PyBytes_FromStringAndSize((const char *)ring->data + index + RECORD_HEADER, (Py_ssize_t)length);
            if (record == NULL)
                goto failed;
            int status = PyList_Append(taken, record);
            Py_DECREF(record);
            if (status < 0)
                goto failed;
            count++;
            room = room < (Py_ssize_t)length ? -1 : room - (Py_ssize_t)length;
        } else if (word >> 32 != KIND_PADDING || index + total != capacity || length % WORD != 0 ||
                   total > tail - cursor) {
            if (count > 0)
                break;
            uint64_t value;
            const char *reason = problem(ring, word, index, &value);
            raise_corrupt(ring, cursor, value, reason);
            goto failed;
        }
        cursor += total;
    }
    ring->cursor = cursor;
    return taken;
failed:
    Py_DECREF(taken);
    return NULL;
}

static PyObject *Ring_release(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    if (require_open(ring) < 0)
        return NULL;
    ring->head = ring->cursor;
    store(ring, HEAD, ring->head);
    Py_RETURN_NONE;
}

static PyObject *Ring_rewind(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    if (require_open(ring) < 0)
        return NULL;
    ring->cursor = ring->head;
    Py_RETURN_NONE;
}

static PyObject *Ring_pending(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    uint64_t tail;
    if (require_open(ring) < 0 || load_tail(ring, &tail) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(tail - ring->cursor);
}

static PyObject *Ring_used(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    uint64_t head, tail;
    if (require_open(ring) < 0 || load_position(ring, HEAD, &head) < 0 || load_position(ring, TAIL, &tail) < 0)
        return NULL;
    if (tail < head) {
        raise_corrupt(ring, head, tail, "the tail is before the head");
        return NULL;
    }
    uint64_t used = tail - head;
    return PyLong_FromUnsignedLongLong(used < ring->capacity ? used : ring->capacity);
}

static Py_ssize_t cell_index(PyObject *argument)
{
    Py_ssize_t cell = PyNumber_AsSsize_t(argument, PyExc_IndexError);
    if (cell == -1 && PyErr_Occurred())
        return -1;
    if (cell >= TAIL && cell < CELLS)
        return cell;
    PyErr_Format(PyExc_IndexError, "no cell %zd in a ring", cell);
    return -1;
}

static PyObject *Ring_get(Ring *ring, PyObject *argument)
{
    Py_ssize_t cell = cell_index(argument);
    if (cell < 0 || require_open(ring) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(load(ring, cell));
}

static PyObject *Ring_set(Ring *ring, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2)
        return PyErr_Format(PyExc_TypeError, "set() takes 2 arguments, not %zd", nargs);
    Py_ssize_t cell = cell_index(args[0]);
    if (cell < 0)
        return NULL;
    unsigned long long value = PyLong_AsUnsignedLongLong(args[1]);
    if (value == (unsigned long long)-1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_ValueError, "a cell holds 0 to 2**64 - 1, not %R", args[1]);
        return NULL;
    }
    if (require_open(ring) < 0)
        return NULL;
    store(ring, cell, value);
    Py_RETURN_NONE;
}

static PyObject *Ring_close(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    if (ring_let_go(ring) < 0)
        return NULL;
    Py_RETURN_NONE;
}

#define FAST(name) (PyCFunction)(void (*)(void))(name)

static PyMethodDef Ring_methods[] = {
    {"push", FAST(Ring_push), METH_FASTCALL, "push($self, /, *parts)\n--\n\nAppends one record."},
    {"push_many", (PyCFunction)Ring_push_many, METH_O,
     "push_many($self, records, /)\n--\n\nAppends as many records as fit."},
    {"reserve", (PyCFunction)Ring_reserve, METH_O, "reserve($self, size, /)\n--\n\nRoom to write a record in place."},
    {"commit", (PyCFunction)Ring_commit, METH_NOARGS, "commit($self)\n--\n\nThe reserved record becomes visible."},
    {"abandon", (PyCFunction)Ring_abandon, METH_NOARGS, "abandon($self)\n--\n\nThe reserved record never was."},
    {"take_many", FAST(Ring_take_many), METH_FASTCALL,
     "take_many($self, max_records, max_bytes, /)\n--\n\nCopies of the records from the cursor on."},
    {"release", (PyCFunction)Ring_release, METH_NOARGS, "release($self)\n--\n\nHEAD := cursor."},
    {"rewind", (PyCFunction)Ring_rewind, METH_NOARGS, "rewind($self)\n--\n\nCursor := HEAD."},
    {"pending", (PyCFunction)Ring_pending, METH_NOARGS, "pending($self)\n--\n\nBytes between cursor and tail."},
    {"used", (PyCFunction)Ring_used, METH_NOARGS, "used($self)\n--\n\nBytes between head and tail."},
    {"get", (PyCFunction)Ring_get, METH_O, "get($self, cell, /)\n--\n\nAcquire load of a cell."},
    {"set", FAST(Ring_set), METH_FASTCALL, "set($self, cell, value, /)\n--\n\nRelease store to a cell."},
    {"close", (PyCFunction)Ring_close, METH_NOARGS, "close($self)\n--\n\nLets go of the buffer."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Ring_members[] = {
    {"capacity", T_ULONGLONG, offsetof(Ring, capacity), READONLY, NULL},
    {"epoch", T_ULONGLONG, offsetof(Ring, epoch), READONLY, NULL},
    {"max_record", T_ULONGLONG, offsetof(Ring, max_record), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Ring_slots[] = {
    {Py_tp_doc, "Ring(buffer, /)\n--\n\nOne end of a ring; see bus/ring.py."},
    {Py_tp_new, Ring_new},
    {Py_tp_dealloc, Ring_dealloc},
    {Py_tp_methods, Ring_methods},
    {Py_tp_members, Ring_members},
    {0, NULL},
};

static PyType_Spec Ring_spec = {
    .name = "bus._ring.Ring",
    .basicsize = sizeof(Ring),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Ring_slots,
};

/* ---- the doorbell ------------------------------------------------------------------------------------------------ */

#define IDLE ((uint32_t)0)
#define ARMED ((uint32_t)1)
#define LONGEST_WAIT 3600.0

typedef struct {
    PyObject_HEAD
    PyObject *view; /* NULL once closed */
    Py_buffer buffer;
    uint32_t *word;
    Py_ssize_t waiting; /* threads in `wait`, which use the word without the GIL */
} Doorbell;

static struct timespec after(double seconds)
{
    struct timespec span = {.tv_sec = (time_t)seconds};
    span.tv_nsec = (long)((seconds - (double)span.tv_sec) * 1e9);
    return span;
}

/* Sleeps while the word is armed, at most so long; a signal ends it early. 0 or an errno. Runs without the GIL. */
#ifdef HAVE_FUTEX
static int sleep_while_armed(uint32_t *word, double seconds)
{
    struct timespec span = after(seconds);
    /* Not FUTEX_PRIVATE_FLAG: the other side is another process. */
    if (syscall(SYS_futex, word, FUTEX_WAIT, ARMED, &span, NULL, 0) == 0 || errno == EAGAIN || errno == ETIMEDOUT)
        return 0;
    return errno;
}

static void wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }
#else
#define SHORT_SLEEP 0.0002
#define LONGEST_SLEEP 0.002

static int sleep_while_armed(uint32_t *word, double seconds)
{
    double pause = SHORT_SLEEP;
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == ARMED) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        double left = seconds - ((double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9);
        if (left <= 0)
            break;
        struct timespec span = after(left < pause ? left : pause);
        if (nanosleep(&span, NULL) != 0)
            return errno;
        pause = pause * 1.5 < LONGEST_SLEEP ? pause * 1.5 : LONGEST_SLEEP;
    }
    return 0;
}

static void wake(uint32_t *word) { (void)word; } /* whoever sleeps briefly looks at the word himself */
#endif

static int bell_require_open(const Doorbell *bell)
{
    if (bell->view != NULL)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the doorbell is closed");
    return -1;
}

static int bell_let_go(Doorbell *bell)
{
    if (bell->waiting > 0) {
        PyErr_SetString(PyExc_BufferError, "somebody waits for this doorbell");
        return -1;
    }
    if (bell->view == NULL)
        return 0;
    PyObject *view = bell->view;
    bell->view = NULL;
    bell->word = NULL;
    PyBuffer_Release(&bell->buffer);
    int status = release_view(view);
    Py_DECREF(view);
    return status;
}

static int bell_map(Doorbell *bell, PyObject *object, Py_ssize_t offset)
{
    State *state = state_of(bell);
    bell->view = export_bytes(object, &bell->buffer);
    if (bell->view == NULL)
        return -1;
    if (offset < 0 || bell->buffer.len < (Py_ssize_t)sizeof(uint32_t) ||
        offset > bell->buffer.len - (Py_ssize_t)sizeof(uint32_t)) {
        raise_with(state->layout_error,
                   Py_BuildValue("(ssnN)", "doorbell", "offset", offset,
                                 PyUnicode_FromFormat("4 bytes within the buffer of %zd", bell->buffer.len)));
        return -1;
    }
    uintptr_t address = (uintptr_t)bell->buffer.buf + (uintptr_t)offset;
    if (address % sizeof(uint32_t) != 0) {
        raise_with(state->layout_error,
                   Py_BuildValue("(ssKs)", "doorbell", "address", (unsigned long long)address, "a multiple of 4"));
        return -1;
    }
    bell->word = (uint32_t *)address;
    return 0;
}

static PyObject *Doorbell_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "offset", NULL};
    PyObject *object;
    Py_ssize_t offset = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|n:Doorbell", names, &object, &offset))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Doorbell *bell = (Doorbell *)alloc(type, 0);
    if (bell != NULL && bell_map(bell, object, offset) < 0)
        Py_CLEAR(bell);
    return (PyObject *)bell;
}

static void Doorbell_dealloc(Doorbell *bell)
{
    PyObject *type_, *value, *traceback;
    PyErr_Fetch(&type_, &value, &traceback);
    (void)bell_let_go(bell);
    PyErr_Restore(type_, value, traceback);
    PyTypeObject *type = Py_TYPE((PyObject *)bell);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(bell);
    Py_DECREF(type);
}

static PyObject *Doorbell_arm(Doorbell *bell, PyObject *Py_UNUSED(ignored))
{
    if (bell_require_open(bell) < 0)
        return NULL;
    __atomic_store_n(bell->word, ARMED, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

static PyObject *Doorbell_wait(Doorbell *bell, PyObject *argument)
{
    double timeout = PyFloat_AsDouble(argument);
    if (timeout == -1.0 && PyErr_Occurred())
        return NULL;
    if (bell_require_open(bell) < 0)
        return NULL;
    if (!isfinite(timeout))
        return PyErr_Format(PyExc_ValueError, "a wait has to be bounded, not %R", argument);
    uint32_t *word = bell->word;
    if (timeout > 0 && __atomic_load_n(word, __ATOMIC_ACQUIRE) == ARMED) {
        int status;
        bell->waiting++; /* keeps the word mapped */
        Py_BEGIN_ALLOW_THREADS
        status = sleep_while_armed(word, timeout < LONGEST_WAIT ? timeout : LONGEST_WAIT);
        Py_END_ALLOW_THREADS
        if (status == EINTR) {
            status = PyErr_CheckSignals();
        } else if (status != 0) {
            errno = status;
            PyErr_SetFromErrno(PyExc_OSError);
            status = -1;
        }
        bell->waiting--;
        if (status < 0)
            return NULL;
    }
    return PyBool_FromLong(__atomic_load_n(word, __ATOMIC_ACQUIRE) != ARMED);
}

static PyObject *Doorbell_disarm(Doorbell *bell, PyObject *Py_UNUSED(ignored))
{
    if (bell_require_open(bell) < 0)
        return NULL;
    __atomic_store_n(bell->word, IDLE, __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

static PyObject *Doorbell_ring(Doorbell *bell, PyObject *Py_UNUSED(ignored))
{
    if (bell_require_open(bell) < 0)
        return NULL;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* what was published is visible before we look */
    if (__atomic_load_n(bell->word, __ATOMIC_RELAXED) != ARMED ||
        __atomic_exchange_n(bell->word, IDLE, __ATOMIC_SEQ_CST) != ARMED)
        Py_RETURN_FALSE;
    wake(bell->word);
    Py_RETURN_TRUE;
}

static PyObject *Doorbell_close(Doorbell *bell, PyObject *Py_UNUSED(ignored))
{
    if (bell_let_go(bell) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef Doorbell_methods[] = {
    {"arm", (PyCFunction)Doorbell_arm, METH_NOARGS, "arm($self)\n--\n\nLook again before waiting."},
    {"wait", (PyCFunction)Doorbell_wait, METH_O, "wait($self, timeout, /)\n--\n\nSleeps while the word is armed."},
    {"disarm", (PyCFunction)Doorbell_disarm, METH_NOARGS, "disarm($self)\n--\n\nNobody waits any more."},
    {"ring", (PyCFunction)Doorbell_ring, METH_NOARGS, "ring($self)\n--\n\nWakes the one who waits, if there is one."},
    {"close", (PyCFunction)Doorbell_close, METH_NOARGS, "close($self)\n--\n\nLets go of the buffer."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Doorbell_slots[] = {
    {Py_tp_doc, "Doorbell(buffer, offset=0)\n--\n\nWhat a worker sleeps on; see bus/doorbell.py."},
    {Py_tp_new, Doorbell_new},
    {Py_tp_dealloc, Doorbell_dealloc},
    {Py_tp_methods, Doorbell_methods},
    {0, NULL},
};

static PyType_Spec Doorbell_spec = {
    .name = "bus._ring.Doorbell",
    .basicsize = sizeof(Doorbell),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Doorbell_slots,
};

/* ---- the module -------------------------------------------------------------------------------------------------- */

static PyObject *attribute(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *found = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_XDECREF(module);
    return found;
}

static int add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int status = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return status;
}

static int module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if ((state->layout_error = attribute("bus.errors", "LayoutError")) == NULL ||
        (state->record_too_large = attribute("bus.errors", "RecordTooLarge")) == NULL ||
        (state->ring_corrupt = attribute("bus.errors", "RingCorrupt")) == NULL ||
        (state->check_ring = attribute("bus.layout", "check_ring")) == NULL)
        return -1;
    if (PyModule_AddIntMacro(module, RING_VERSION) < 0 || PyModule_AddIntMacro(module, HEADER_SIZE) < 0 ||
        PyModule_AddIntMacro(module, RECORD_HEADER) < 0 || PyModule_AddIntMacro(module, WORD) < 0 ||
        PyModule_AddIntMacro(module, TAIL) < 0 || PyModule_AddIntMacro(module, HEAD) < 0 ||
        PyModule_AddIntConstant(module, "RECORD", KIND_RECORD) < 0 ||
        PyModule_AddIntConstant(module, "PADDING", KIND_PADDING) < 0 ||
        PyModule_AddIntConstant(module, "MIN_CAPACITY", (long)MIN_CAPACITY) < 0)
        return -1;
#ifdef HAVE_FUTEX
    if (PyModule_AddIntConstant(module, "FUTEX", 1) < 0)
        return -1;
#else
    if (PyModule_AddIntConstant(module, "FUTEX", 0) < 0)
        return -1;
#endif
    return add_type(module, &Ring_spec) < 0 || add_type(module, &Doorbell_spec) < 0 ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_VISIT(state->layout_error);
        Py_VISIT(state->record_too_large);
        Py_VISIT(state->ring_corrupt);
        Py_VISIT(state->check_ring);
    }
    return 0;
}

static int module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_CLEAR(state->layout_error);
        Py_CLEAR(state->record_too_large);
        Py_CLEAR(state->ring_corrupt);
        Py_CLEAR(state->check_ring);
    }
    return 0;
}

static void module_free(void *module) { (void)module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bus._ring",
    .m_doc = "The ring and the doorbell in C; see bus/ring.py and bus/doorbell.py.",
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__ring(void) { return PyModuleDef_Init(&module_definition); }
