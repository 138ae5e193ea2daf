/* The class Ring: `_ring_core.h` for Python. `ring.py` says what each method means. */
#define _GNU_SOURCE
#include "_ring_object.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

int ring_checked(Ring *ring, int step, uint64_t size)
{
    if (step >= 0)
        return step;
    State *state = state_of(ring);
    if (step == RING_TOO_LARGE) {
        raise_with(state->record_too_large,
                   Py_BuildValue("(KK)", (unsigned long long)size, (unsigned long long)ring->end.max_record));
    } else {
        const RingFault *fault = &ring->end.fault;
        raise_with(state->ring_corrupt, Py_BuildValue("(KKs)", (unsigned long long)fault->position,
                                                      (unsigned long long)fault->value, fault->reason));
    }
    return -1;
}

int ring_require_open(const Ring *ring)
{
    if (ring->view != NULL)
        return 0;
    PyErr_SetString(PyExc_ValueError, "the ring is closed");
    return -1;
}

static Reserved *reserved_at(const Ring *ring, int index)
{
    return (Reserved *)&ring->reserved[(ring->first_reserved + index) % MOST_RESERVED];
}

static int require_no_reservation(const Ring *ring)
{
    if (ring_require_open(ring) < 0)
        return -1;
    if (ring->reserved_count == 0)
        return 0;
    Py_ssize_t size = 0;
    for (int i = 0; i < ring->reserved_count; i++)
        size += PyObject_Size(reserved_at(ring, i)->view);
    PyErr_Format(PyExc_RuntimeError, "%zd bytes are reserved in this ring: commit or abandon them first", size);
    return -1;
}

static int ring_let_go(Ring *ring)
{
    while (ring->reserved_count > 0) {
        Reserved *last = reserved_at(ring, ring->reserved_count - 1);
        if (release_view(last->view) < 0)
            return -1;
        ring->reserved_count--;
        Py_CLEAR(last->view);
    }
    if (ring->view != NULL) {
        PyObject *view = ring->view;
        ring->view = NULL;
        ring->end.words = NULL;
        ring->end.data = NULL;
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
    unsigned long long capacity;
    int parsed = PyArg_ParseTuple(header, "KK", &capacity, &ring->epoch);
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
    if (capacity < MIN_CAPACITY || capacity > MAX_CAPACITY || (capacity & (capacity - 1)) ||
        (uint64_t)ring->buffer.len < HEADER_SIZE + capacity) {
        raise_with(state->layout_error, Py_BuildValue("(ssKs)", "ring", "capacity", capacity, "what check_ring accepts"));
        return -1;
    }
    return ring_checked(ring, ring_attach(&ring->end, ring->buffer.buf, capacity), 0) < 0 ? -1 : 0;
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
        /* Somebody exports a reserved view, and by it keeps the memory alive. */
        PyErr_Clear();
        while (ring->reserved_count > 0)
            Py_CLEAR(reserved_at(ring, --ring->reserved_count)->view);
        (void)ring_let_go(ring);
        PyErr_Clear();
    }
    PyErr_Restore(type_, value, traceback);
    PyTypeObject *type = Py_TYPE((PyObject *)ring);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(ring);
    Py_DECREF(type);
}

/* 1: the record goes to `*start`; 0: no room; -1: an error is set. Runs no Python code unless it fails. */
static inline int place(Ring *ring, uint64_t tail, uint64_t size, uint64_t *start)
{
    int step = ring_place(&ring->end, tail, size, start);
    if (step != RING_OK)
        return ring_checked(ring, step, size);
    return FAILPOINT("ring-claimed") < 0 ? -1 : 1;
}

static inline int publish(Ring *ring, uint64_t tail)
{
    if (FAILPOINT("ring-copied") < 0)
        return -1;
    ring_publish(&ring->end, tail);
    return FAILPOINT("ring-tail-stored");
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
        int placed = place(ring, ring->end.tail, size, &start);
        if (placed > 0) {
            memcpy(ring_payload(&ring->end, start), content, size);
            if (FAILPOINT("ring-copying") < 0 || publish(ring, start + ring_framed(size)) < 0)
                placed = -1;
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
    placed = place(ring, ring->end.tail, size, &start);
    if (placed > 0) {
        uint8_t *at = ring_payload(&ring->end, start);
        for (Py_ssize_t i = 0; i < count; i++) {
            if (buffers[i].len > 0)
                memcpy(at, buffers[i].buf, (size_t)buffers[i].len);
            at += buffers[i].len;
            if (FAILPOINT("ring-copying") < 0) {
                placed = -1;
                goto done;
            }
        }
        if (publish(ring, start + ring_framed(size)) < 0)
            placed = -1;
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
    if (ring->end.tail == tail)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "the ring was pushed to while records for it were being looked at");
    return -1;
}

static int push_other(Ring *ring, PyObject *record, uint64_t *tail)
{
    Py_buffer buffer;
    uint64_t before = ring->end.tail, start;
    Py_INCREF(record); /* the list may lose it while the exporter runs */
    int placed = -1;
    if (PyObject_GetBuffer(record, &buffer, PyBUF_SIMPLE) == 0) {
        if (require_untouched(ring, before) == 0) {
            placed = place(ring, *tail, (uint64_t)buffer.len, &start);
            if (placed > 0) {
                if (buffer.len > 0)
                    memcpy(ring_payload(&ring->end, start), buffer.buf, (size_t)buffer.len);
                *tail = start + ring_framed((uint64_t)buffer.len);
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
    uint64_t tail = ring->end.tail, size, start;
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
            memcpy(ring_payload(&ring->end, start), content, size);
            tail = start + ring_framed(size);
        } else {
            placed = push_other(ring, record, &tail);
            if (placed <= 0)
                break;
        }
        if (FAILPOINT("ring-copying") < 0) {
            placed = -1;
            break;
        }
    }
    if (placed >= 0 && pushed > 0 && publish(ring, tail) < 0)
        placed = -1;
    Py_DECREF(sequence);
    return placed < 0 ? NULL : PyLong_FromSsize_t(pushed);
}

static PyObject *Ring_reserve(Ring *ring, PyObject *argument)
{
    uint64_t start;
    Py_ssize_t size = PyNumber_AsSsize_t(argument, NULL);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    if (ring_require_open(ring) < 0)
        return NULL;
    if (size < 0)
        return PyErr_Format(PyExc_ValueError, "a record cannot have %zd bytes", size);
    if ((uint64_t)size > ring->end.max_record) {
        (void)ring_checked(ring, RING_TOO_LARGE, (uint64_t)size);
        return NULL;
    }
    int count = ring->reserved_count;
    if (count == MOST_RESERVED)
        Py_RETURN_NONE;
    int placed = place(ring, count > 0 ? reserved_at(ring, count - 1)->end : ring->end.tail, (uint64_t)size, &start);
    if (placed < 0)
        return NULL;
    if (placed == 0)
        Py_RETURN_NONE;
    Py_ssize_t at = HEADER_SIZE + (Py_ssize_t)(start & ring->end.mask) + RECORD_HEADER;
    const uint64_t tail = ring->end.tail;
    PyObject *reserved = PySequence_GetSlice(ring->view, at, at + size);
    if (reserved == NULL)
        return NULL;
    if (ring->view == NULL || ring->reserved_count != count || ring->end.tail != tail) { /* garbage was collected */
        Py_DECREF(reserved);
        PyErr_SetString(PyExc_RuntimeError, "the ring was used while room in it was being reserved");
        return NULL;
    }
    ring->reserved_count = count + 1;
    *reserved_at(ring, count) = (Reserved){reserved, start + ring_framed((uint64_t)size)};
    Py_INCREF(reserved);
    return reserved;
}

static int require_reservation(const Ring *ring)
{
    if (ring_require_open(ring) < 0)
        return -1;
    if (ring->reserved_count > 0)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "nothing is reserved in this ring");
    return -1;
}

static PyObject *Ring_commit(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    if (require_reservation(ring) < 0)
        return NULL;
    Reserved first = *reserved_at(ring, 0);
    if (release_view(first.view) < 0)
        return NULL;
    reserved_at(ring, 0)->view = NULL;
    ring->first_reserved = (ring->first_reserved + 1) % MOST_RESERVED;
    ring->reserved_count--;
    Py_DECREF(first.view);
    if (publish(ring, first.end) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Ring_abandon(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    if (require_reservation(ring) < 0)
        return NULL;
    Reserved *last = reserved_at(ring, ring->reserved_count - 1);
    if (release_view(last->view) < 0)
        return NULL;
    ring->reserved_count--;
    Py_CLEAR(last->view);
    Py_RETURN_NONE;
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
    if (ring_require_open(ring) < 0 || ring_checked(ring, ring_tail(&ring->end, &tail), 0) < 0)
        goto failed;
    uint64_t cursor = ring->end.cursor;
    Py_ssize_t count = 0;
    while (cursor < tail && count < max_records) {
        RingItem item;
        int step = ring_item(&ring->end, cursor, tail, &item);
        if (step < 0) {
            if (count > 0)
                break;
            (void)ring_checked(ring, step, 0);
            goto failed;
        }
        if (item.kind == KIND_RECORD) {
            Py_ssize_t length = (Py_ssize_t)item.length;
            if (count > 0 && length > room)
                break;
            PyObject *record = PyBytes_FromStringAndSize((const char *)item.payload, length);
            if (record == NULL)
                goto failed;
            int status = PyList_Append(taken, record);
            Py_DECREF(record);
            if (status < 0 || FAILPOINT("ring-record-copied") < 0)
                goto failed;
            count++;
            room = room < length ? -1 : room - length;
        }
        cursor += item.total;
    }
    ring->end.cursor = cursor;
    return taken;
failed:
    Py_DECREF(taken);
    return NULL;
}

/* Finds the records first and makes their views then: that may run Python code, and after it nothing of the ring is
 * touched that such code could have changed. */
static PyObject *Ring_take_views(Ring *ring, PyObject *const *args, Py_ssize_t nargs)
{
    enum { MOST = 256 };
    Py_ssize_t starts[MOST], sizes[MOST], count = 0;
    if (nargs != 2)
        return PyErr_Format(PyExc_TypeError, "take_views() takes 2 arguments, not %zd", nargs);
    Py_ssize_t max_records = PyNumber_AsSsize_t(args[0], NULL);
    if (max_records == -1 && PyErr_Occurred())
        return NULL;
    Py_ssize_t room = PyNumber_AsSsize_t(args[1], NULL);
    if (room == -1 && PyErr_Occurred())
        return NULL;
    uint64_t tail;
    if (ring_require_open(ring) < 0 || ring_checked(ring, ring_tail(&ring->end, &tail), 0) < 0)
        return NULL;
    const uint64_t begin = ring->end.cursor;
    uint64_t cursor = begin;
    while (cursor < tail && count < max_records && count < MOST) {
        RingItem item;
        int step = ring_item(&ring->end, cursor, tail, &item);
        if (step < 0) {
            if (count > 0)
                break;
            (void)ring_checked(ring, step, 0);
            return NULL;
        }
        if (item.kind == KIND_RECORD) {
            Py_ssize_t length = (Py_ssize_t)item.length;
            if (count > 0 && length > room)
                break;
            starts[count] = HEADER_SIZE + (Py_ssize_t)(item.payload - ring->end.data);
            sizes[count++] = length;
            room = room < length ? -1 : room - length;
        }
        cursor += item.total;
    }
    PyObject *whole = ring->view;
    Py_INCREF(whole);
    PyObject *taken = PyList_New(0);
    for (Py_ssize_t i = 0; taken != NULL && i < count; i++) {
        PyObject *part = PySequence_GetSlice(whole, starts[i], starts[i] + sizes[i]);
        PyObject *view = part == NULL ? NULL : PyObject_CallMethod(part, "toreadonly", NULL);
        Py_XDECREF(part);
        if (view == NULL || PyList_Append(taken, view) < 0 || FAILPOINT("ring-record-copied") < 0)
            Py_CLEAR(taken);
        Py_XDECREF(view);
    }
    Py_DECREF(whole);
    if (taken != NULL && (ring_require_open(ring) < 0 || ring->end.cursor != begin)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "the ring was used while records of it were being taken");
        Py_CLEAR(taken);
    }
    if (taken != NULL)
        ring->end.cursor = cursor;
    return taken;
}

static PyObject *Ring_release(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    if (ring_require_open(ring) < 0)
        return NULL;
    ring_release(&ring->end);
    if (FAILPOINT("ring-head-stored") < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Ring_rewind(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    if (ring_require_open(ring) < 0)
        return NULL;
    ring_rewind(&ring->end);
    if (FAILPOINT("ring-rewound") < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Ring_pending(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    uint64_t tail;
    if (ring_require_open(ring) < 0 || ring_checked(ring, ring_tail(&ring->end, &tail), 0) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(tail - ring->end.cursor);
}

static PyObject *Ring_used(Ring *ring, PyObject *Py_UNUSED(ignored))
{
    uint64_t used;
    if (ring_require_open(ring) < 0 || ring_checked(ring, ring_used(&ring->end, &used), 0) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(used);
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
    if (cell < 0 || ring_require_open(ring) < 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(ring_load(&ring->end, cell));
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
    if (ring_require_open(ring) < 0)
        return NULL;
    ring_store(&ring->end, cell, value);
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
    {"commit", (PyCFunction)Ring_commit, METH_NOARGS, "commit($self)\n--\n\nThe first reserved record becomes visible."},
    {"abandon", (PyCFunction)Ring_abandon, METH_NOARGS, "abandon($self)\n--\n\nThe last reserved record never was."},
    {"take_many", FAST(Ring_take_many), METH_FASTCALL,
     "take_many($self, max_records, max_bytes, /)\n--\n\nCopies of the records from the cursor on."},
    {"take_views", FAST(Ring_take_views), METH_FASTCALL,
     "take_views($self, max_records, max_bytes, /)\n--\n\nThe same where they are: read-only, until release."},
    {"release", (PyCFunction)Ring_release, METH_NOARGS, "release($self)\n--\n\nHEAD := cursor."},
    {"rewind", (PyCFunction)Ring_rewind, METH_NOARGS, "rewind($self)\n--\n\nCursor := HEAD."},
    {"pending", (PyCFunction)Ring_pending, METH_NOARGS, "pending($self)\n--\n\nBytes between cursor and tail."},
    {"waiting", FAST(Ring_waiting), METH_FASTCALL | METH_CLASS,
     "waiting($type, rings, seconds=0.0, /)\n--\n\nWhich of them have records behind their cursors."},
    {"answered", Ring_answered, METH_O | METH_CLASS,
     "answered($type, rings, /)\n--\n\nOf which of them the consumer has acknowledged, or asked for something."},
    {"used", (PyCFunction)Ring_used, METH_NOARGS, "used($self)\n--\n\nBytes between head and tail."},
    {"get", (PyCFunction)Ring_get, METH_O, "get($self, cell, /)\n--\n\nAcquire load of a cell."},
    {"set", FAST(Ring_set), METH_FASTCALL, "set($self, cell, value, /)\n--\n\nRelease store to a cell."},
    {"close", (PyCFunction)Ring_close, METH_NOARGS, "close($self)\n--\n\nLets go of the buffer."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Ring_members[] = {
    {"capacity", T_ULONGLONG, offsetof(Ring, end.capacity), READONLY, NULL},
    {"epoch", T_ULONGLONG, offsetof(Ring, epoch), READONLY, NULL},
    {"max_record", T_ULONGLONG, offsetof(Ring, end.max_record), READONLY, NULL},
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

PyType_Spec Ring_spec = {
    .name = "bus._ring.Ring",
    .basicsize = sizeof(Ring),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Ring_slots,
};
