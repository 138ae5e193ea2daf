/* Makes the messages of a run; `_progress.pyi` says what an Unpacker does, and this runs once per message.
 *
 * - A run is gone through twice. First it is looked at, all of it, and nothing is made: what is not plain is left to
 *   somebody else. Then its messages are made, each when its turn comes, so that the memory of the one before, which is
 *   free by then, is used again while it is in the cache.
 * - The second time everything is checked once more: what is read lies in the memory of whoever made the run.
 * - A message is made as its class makes it, without calling it, and its fields are put where the class says they are.
 *   No Python code runs meanwhile, and nobody has seen the message before. */
#include "_run.h"

#include "_field.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* As in send.py; a test compares them. */
enum { NONE = 1, BOOL = 2, INT = 4, FLOAT = 8, TEXT = 16, BYTES = 32 };

enum { FAILED = -1, REFUSED = 0, TAKEN = 1 };

enum {
    KNOWN = 256,        /* short texts that are not made again */
    KNOWN_BITS = 8,
    LONGEST_KNOWN = 16, /* bytes */
};

typedef unsigned char Byte;

typedef struct {
    unsigned long kinds;
    Py_ssize_t offset; /* in a message */
} MadeField;

typedef struct {
    uint64_t head, tail; /* its first and its last bytes: with its size, all of it */
    Py_ssize_t size;
    PyObject *text;
} KnownText;

typedef struct {
    PyObject_HEAD
    PyTypeObject *type;
    allocfunc allocate;
    PyObject *prefix; /* bytes: with what each message begins */
    const Byte *prefix_data;
    Py_ssize_t prefix_size;
    MadeField *fields;
    Py_ssize_t field_count;
    KnownText *known;
    int bare; /* a message is its fields and nothing else */
} Unpacker;

typedef struct {
    PyObject_HEAD
    Unpacker *unpacker;
    Py_buffer body;
    const Byte *first, *at; /* the first message, and the next one to be made */
    Py_ssize_t count;
    PyObject *made[2]; /* the last two, if their class allows it */
    int turn;          /* which of them is the older one */
} Run;

/* ------------------------------------------------------------------------------------------------ MessagePack */
static inline uint64_t number(const Byte *at, int bytes)
{
    uint64_t value = 0;
    for (int index = 0; index < bytes; index++)
        value = value << 8 | at[index];
    return value;
}

static inline int is_ascii(const Byte *at, Py_ssize_t size)
{
    uint64_t word = 0, all = 0;
    for (; size >= 8; at += 8, size -= 8) {
        memcpy(&word, at, 8);
        all |= word;
    }
    for (; size; at++, size--)
        all |= *at;
    return (all & 0x8080808080808080u) == 0;
}

/* What a text is known by, if it is short. */
static inline KnownText identity(const Byte *at, Py_ssize_t size)
{
    KnownText found = {.size = size};
    if (size >= 8) {
        memcpy(&found.head, at, 8);
        memcpy(&found.tail, at + size - 8, 8);
    } else if (size >= 4) {
        uint32_t head, tail;
        memcpy(&head, at, 4);
        memcpy(&tail, at + size - 4, 4);
        found.head = head;
        found.tail = tail;
    } else if (size) {
        found.head = at[0] | (uint64_t)at[size / 2] << 8 | (uint64_t)at[size - 1] << 16;
    }
    return found;
}

static PyObject *make_text(Unpacker *self, const Byte *at, Py_ssize_t size)
{
    if (size > LONGEST_KNOWN)
        return PyUnicode_DecodeUTF8((const char *)at, size, NULL);
    KnownText wanted = identity(at, size);
    const uint64_t mixed = (wanted.head ^ (wanted.tail << 1 | wanted.tail >> 63) ^ (uint64_t)size) * 0x9e3779b97f4a7c15u;
    KnownText *known = self->known + (mixed >> (64 - KNOWN_BITS));
    if (known->text == NULL || known->head != wanted.head || known->tail != wanted.tail || known->size != size) {
        wanted.text = PyUnicode_DecodeUTF8((const char *)at, size, NULL);
        if (wanted.text == NULL)
            return NULL;
        PyObject *before = known->text;
        *known = wanted;
        Py_XDECREF(before);
    }
    return Py_NewRef(known->text);
}

static int is_text(const Byte *at, Py_ssize_t size)
{
    if (is_ascii(at, size))
        return TAKEN;
    PyObject *text = PyUnicode_DecodeUTF8((const char *)at, size, NULL);
    if (text == NULL && !PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
        return FAILED;
    PyErr_Clear();
    Py_XDECREF(text);
    return text == NULL ? REFUSED : TAKEN;
}

/* The value of a field; with `made` NULL, whether it is one. `*place` is behind it if it was taken. */
static inline __attribute__((always_inline)) int read_value(Unpacker *self, unsigned long kinds, const Byte **place,
                                                            const Byte *end, PyObject **made)
{
    const Byte *at = *place;
    if (at == end)
        return REFUSED;
    const Byte tag = *at++;
    const Py_ssize_t left = end - at;
    unsigned long kind;
    Py_ssize_t size = 0; /* of what follows */
    uint64_t value = 0;
    int negative = 0;
    if (tag < 0x80 || tag >= 0xe0) {
        kind = INT;
        negative = tag >= 0xe0;
        value = negative ? (uint64_t)(int64_t)(int8_t)tag : tag;
    } else if ((tag & 0xe0) == 0xa0) {
        kind = TEXT;
        size = tag & 0x1f;
    } else if (tag == 0xcb) {
        if (left < 8)
            return REFUSED;
        kind = FLOAT;
        value = number(at, 8);
        at += 8;
    } else if (tag >= 0xcc && tag <= 0xd3) {
        const int bytes = 1 << (tag & 3);
        if (left < bytes)
            return REFUSED;
        kind = INT;
        value = bytes == 8 ? number(at, 8) : bytes == 4 ? number(at, 4) : bytes == 2 ? number(at, 2) : *at;
        if (tag >= 0xd0) {
            const int shift = 64 - 8 * bytes;
            negative = (int64_t)(value << shift) < 0;
            value = (uint64_t)((int64_t)(value << shift) >> shift);
        }
        at += bytes;
    } else if ((tag >= 0xd9 && tag <= 0xdb) || (tag >= 0xc4 && tag <= 0xc6)) {
        kind = tag >= 0xd9 ? TEXT : BYTES;
        const int bytes = 1 << (tag - (tag >= 0xd9 ? 0xd9 : 0xc4));
        if (left < bytes)
            return REFUSED;
        size = (Py_ssize_t)number(at, bytes);
        at += bytes;
    } else if (tag == 0xc0) {
        kind = NONE;
    } else if (tag == 0xc2 || tag == 0xc3) {
        kind = BOOL;
    } else {
        return REFUSED;
    }
    if (end - at < size)
        return REFUSED;
    if (!(kinds & kind)) {
        if (kind != INT || !(kinds & FLOAT))
            return REFUSED;
        const double whole = negative ? (double)(int64_t)value : (double)value;
        memcpy(&value, &whole, 8);
        kind = FLOAT;
    }
    *place = at + size;
    if (made == NULL)
        return kind == TEXT ? is_text(at, size) : TAKEN;
    if (kind == TEXT) {
        *made = make_text(self, at, size);
    } else if (kind == FLOAT) {
        double real;
        memcpy(&real, &value, 8);
        *made = PyFloat_FromDouble(real);
    } else if (kind == INT) {
        const int fits = negative || value <= INT64_MAX;
        *made = fits ? PyLong_FromLongLong((long long)value) : PyLong_FromUnsignedLongLong(value);
    } else if (kind == BYTES) {
        *made = PyBytes_FromStringAndSize((const char *)at, size);
    } else {
        *made = Py_NewRef(kind == NONE ? Py_None : tag == 0xc3 ? Py_True : Py_False);
    }
    return *made == NULL ? FAILED : TAKEN;
}

static inline int read_prefix(const Unpacker *self, const Byte **place, const Byte *end)
{
    const Py_ssize_t size = self->prefix_size;
    if (end - *place < size || **place != *self->prefix_data)
        return REFUSED;
    if (size > 1 && memcmp(*place, self->prefix_data, (size_t)size) != 0)
        return REFUSED;
    *place += size;
    return TAKEN;
}

static int pass_message(Unpacker *self, const Byte **place, const Byte *end)
{
    int status = read_prefix(self, place, end);
    for (Py_ssize_t index = 0; status == TAKEN && index < self->field_count; index++)
        status = read_value(self, self->fields[index].kinds, place, end, NULL);
    return status;
}

/* Puts the values that come next into a message, in place of those it has. */
static int fill_message(Unpacker *self, PyObject *message, const Byte **place, const Byte *end)
{
    int status = read_prefix(self, place, end);
    for (Py_ssize_t index = 0; status == TAKEN && index < self->field_count; index++) {
        const MadeField *field = self->fields + index;
        PyObject **slot = (PyObject **)((char *)message + field->offset), *value;
        status = read_value(self, field->kinds, place, end, &value);
        if (status == TAKEN) {
            PyObject *before = *slot;
            *slot = value;
            Py_XDECREF(before);
        }
    }
    if (status == REFUSED)
        PyErr_SetString(PyExc_ValueError, "what the run consists of has changed since it was looked at");
    return status == TAKEN ? 0 : -1;
}

static PyObject *make_message(Unpacker *self, const Byte **place, const Byte *end)
{
    PyObject *message = self->allocate(self->type, 0);
    if (message != NULL && fill_message(self, message, place, end) < 0)
        Py_CLEAR(message);
    return message;
}

/* ------------------------------------------------------------------------------------------------ Run */
static const Byte *end_of(Run *self) { return (const Byte *)self->body.buf + self->body.len; }

Py_ssize_t run_length(PyObject *run) { return ((Run *)run)->count; }

PyObject *run_next(PyObject *run)
{
    Run *self = (Run *)run;
    Unpacker *unpacker = self->unpacker;
    if (!unpacker->bare)
        return make_message(unpacker, &self->at, end_of(self));
    PyObject **older = self->made + self->turn;
    self->turn = !self->turn;
    if (*older == NULL || Py_REFCNT(*older) != 1) {
        PyObject *before = *older;
        *older = make_message(unpacker, &self->at, end_of(self));
        Py_XDECREF(before);
    } else if (fill_message(unpacker, *older, &self->at, end_of(self)) < 0) {
        return NULL;
    }
    return Py_XNewRef(*older);
}

/* Where its first message begins, if all of its messages are plain. */
static int look(Unpacker *unpacker, Run *run)
{
    const Byte *at = run->body.buf, *end = end_of(run);
    if (at == end)
        return REFUSED;
    const Byte tag = *at++;
    if ((tag & 0xf0) == 0x90) {
        run->count = tag & 0x0f;
    } else if (tag == 0xdc || tag == 0xdd) {
        const int bytes = tag == 0xdc ? 2 : 4;
        if (end - at < bytes)
            return REFUSED;
        run->count = (Py_ssize_t)number(at, bytes);
        at += bytes;
    } else {
        return REFUSED;
    }
    run->first = run->at = at;
    int status = TAKEN;
    for (Py_ssize_t index = 0; status == TAKEN && index < run->count; index++)
        status = pass_message(unpacker, &at, end);
    return status == TAKEN && at != end ? REFUSED : status;
}

static PyObject *Run_subscript(Run *self, PyObject *slice)
{
    Py_ssize_t start, stop, step;
    if (!PySlice_Check(slice)) {
        PyErr_SetString(PyExc_TypeError, "of a run there are slices only");
        return NULL;
    }
    if (PySlice_Unpack(slice, &start, &stop, &step) < 0)
        return NULL;
    const Py_ssize_t length = PySlice_AdjustIndices(self->count, &start, &stop, step);
    if (step != 1) {
        PyErr_SetString(PyExc_ValueError, "the messages of a run are made one after the other");
        return NULL;
    }
    const Byte *at = self->first, *end = end_of(self);
    for (Py_ssize_t index = 0; index < start && index < self->count; index++) {
        if (pass_message(self->unpacker, &at, end) == FAILED)
            return NULL;
    }
    PyObject *list = PyList_New(length);
    for (Py_ssize_t index = 0; list != NULL && index < length; index++) {
        PyObject *message = make_message(self->unpacker, &at, end);
        if (message == NULL || PyList_SetItem(list, index, message) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static void Run_dealloc(Run *self)
{
    if (self->body.obj != NULL)
        PyBuffer_Release(&self->body);
    Py_CLEAR(self->made[0]);
    Py_CLEAR(self->made[1]);
    Py_CLEAR(self->unpacker);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyType_Slot run_slots[] = {
    {Py_tp_doc, "A run of messages; see _progress.pyi."},
    {Py_tp_dealloc, Run_dealloc},
    {Py_mp_length, run_length},
    {Py_mp_subscript, Run_subscript},
    {0, NULL},
};

PyType_Spec run_spec = {
    .name = "bus._progress.Run",
    .basicsize = sizeof(Run),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = run_slots,
};

/* ------------------------------------------------------------------------------------------------ Unpacker */
/* Whether messages of the class are their fields and nothing else: no hash that is remembered, no weak references, no
 * finalizer. Then one that nobody else has can become the next one, as the tuples of `zip` do. */
static int is_bare(PyTypeObject *type, Py_ssize_t field_count)
{
#ifdef Py_GIL_DISABLED
    return 0;
#endif
    /* A dict or weak references that the interpreter manages are no part of the size. */
    static const char *const names[] = {"__basicsize__", "__dictoffset__", "__weakrefoffset__"};
    const Py_ssize_t bare[] = {(Py_ssize_t)(sizeof(PyObject) + (size_t)field_count * sizeof(PyObject *)), 0, 0};
    for (int index = 0; index < 3; index++) {
        PyObject *found = PyObject_GetAttrString((PyObject *)type, names[index]);
        const Py_ssize_t value = found == NULL ? -1 : PyLong_AsSsize_t(found);
        Py_XDECREF(found);
        if (value == -1 && PyErr_Occurred())
            return -1;
        if (value != bare[index])
            return 0;
    }
    return PyType_GetSlot(type, Py_tp_finalize) == NULL && PyType_GetSlot(type, Py_tp_del) == NULL;
}

static int read_field(Unpacker *self, MadeField *field, PyObject *given)
{
    PyObject *descriptor;
    if (!PyTuple_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "a field is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(given, "Ok", &descriptor, &field->kinds))
        return -1;
    field->offset = offset_of(self->type, descriptor);
    return field->offset < 0 ? -1 : 0;
}

static PyObject *Unpacker_new(PyTypeObject *cls, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"type", "prefix", "fields", NULL};
    PyObject *type, *prefix, *fields;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!SO!", names, &PyType_Type, &type, &prefix, &PyTuple_Type,
                                     &fields))
        return NULL;
    const unsigned long flags = PyType_GetFlags((PyTypeObject *)type);
    if (flags & Py_TPFLAGS_HAVE_GC || !(flags & Py_TPFLAGS_HEAPTYPE)) {
        PyErr_SetString(PyExc_TypeError, "messages that the garbage collector knows are not made here");
        return NULL;
    }
    allocfunc allocate = PyType_GetSlot(cls, Py_tp_alloc);
    Unpacker *self = (Unpacker *)allocate(cls, 0);
    if (self == NULL)
        return NULL;
    self->type = (PyTypeObject *)Py_NewRef(type);
    self->allocate = (allocfunc)PyType_GetSlot(self->type, Py_tp_alloc);
    self->prefix = Py_NewRef(prefix);
    self->prefix_data = (const Byte *)PyBytes_AsString(prefix);
    self->prefix_size = PyBytes_Size(prefix);
    self->bare = is_bare(self->type, PyTuple_Size(fields));
    if (self->bare < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->field_count = PyTuple_Size(fields);
    self->fields = PyMem_Calloc((size_t)self->field_count + 1, sizeof(MadeField));
    self->known = PyMem_Calloc(KNOWN, sizeof(KnownText));
    if (self->fields == NULL || self->known == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t index = 0; index < self->field_count; index++) {
        if (read_field(self, self->fields + index, PyTuple_GetItem(fields, index)) < 0) {
            Py_DECREF(self);
            return NULL;
        }
    }
    return (PyObject *)self;
}

static PyObject *Unpacker_unpack(Unpacker *self, PyObject *body)
{
    ProgressState *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    if (state == NULL)
        return NULL;
    allocfunc allocate = PyType_GetSlot(state->run, Py_tp_alloc);
    Run *run = (Run *)allocate(state->run, 0);
    if (run == NULL)
        return NULL;
    run->unpacker = (Unpacker *)Py_NewRef((PyObject *)self);
    int status = PyObject_GetBuffer(body, &run->body, PyBUF_SIMPLE) < 0 ? FAILED : look(self, run);
    if (status == TAKEN)
        return (PyObject *)run;
    Py_DECREF(run);
    if (status == FAILED)
        return NULL;
    Py_RETURN_NONE;
}

static int Unpacker_traverse(Unpacker *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->type);
    return 0;
}

static void Unpacker_dealloc(Unpacker *self)
{
    PyObject_GC_UnTrack(self);
    for (int index = 0; self->known != NULL && index < KNOWN; index++)
        Py_XDECREF(self->known[index].text);
    PyMem_Free(self->known);
    PyMem_Free(self->fields);
    Py_CLEAR(self->prefix);
    Py_CLEAR(self->type);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef unpacker_methods[] = {
    {"unpack", (PyCFunction)Unpacker_unpack, METH_O,
     "unpack($self, body, /)\n--\n\nIts messages as a Run; None if they are not all plain."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot unpacker_slots[] = {
    {Py_tp_doc, "Unpacker(type, prefix, fields)\n--\n\nMakes messages of a class; see _progress.pyi."},
    {Py_tp_new, Unpacker_new},
    {Py_tp_dealloc, Unpacker_dealloc},
    {Py_tp_traverse, Unpacker_traverse}, /* no clear: the class knows nothing of it */
    {Py_tp_methods, unpacker_methods},
    {0, NULL},
};

PyType_Spec unpacker_spec = {
    .name = "bus._progress.Unpacker",
    .basicsize = sizeof(Unpacker),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = unpacker_slots,
};

int run_add_kinds(PyObject *module)
{
    return PyModule_AddIntMacro(module, NONE) < 0 || PyModule_AddIntMacro(module, BOOL) < 0 ||
                   PyModule_AddIntMacro(module, INT) < 0 || PyModule_AddIntMacro(module, FLOAT) < 0 ||
                   PyModule_AddIntMacro(module, TEXT) < 0 || PyModule_AddIntMacro(module, BYTES) < 0
               ? -1
               : 0;
}
