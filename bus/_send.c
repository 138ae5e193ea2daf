/* What takes the messages that a handler sends. `send.py` says what a Sender does, `_send.pyi` what a Packer does; this
 * runs once per message.
 *
 * - A message is taken whole or not at all: one that is refused, by whatever its fields hold, leaves nothing behind.
 * - While a message is written no Python code can run: its fields are read where their descriptors read them, and all
 *   that is looked at is exactly of a built-in type, or known by its address. Nothing that is made for a piece is
 *   known to the garbage collector. So nobody sees half a message, nor does a send come in between. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdint.h>
#include <string.h>

#include "_failpoint.h"
#include "_field.h"

/* From send.py; a test compares them. */
enum { NONE = 1, BOOL = 2, INT = 4, FLOAT = 8, TEXT = 16, BYTES = 32 };

enum {
    LONGEST_HEADER = 5, /* of an array, and of a text */
    LONGEST_NUMBER = 9,
    KEPT_BUFFER = 1 << 18, /* one that a large message made larger than this is given back */
};

typedef struct {
    PyObject *descriptor;
    descrgetfunc get;
    Py_ssize_t offset; /* in a message; less than 0: only the descriptor knows how it is read */
    unsigned long kinds;
    PyObject *members; /* address -> encoding, of an Enum; NULL: there is none */
} PackedField;

typedef struct {
    PyObject_HEAD
    PyTypeObject *type;
    PyObject *prefix; /* bytes: with what each message begins */
    PackedField *fields;
    Py_ssize_t field_count, limit, largest;
    PyObject *refused; /* called with a message that is not taken */
    PyObject *pieces;  /* of the run at hand; NULL: there is none */
    char *buffer;      /* the open piece, without its header */
    Py_ssize_t used, room, start; /* where the message at hand begins */
    Py_ssize_t packed; /* messages of the open piece */
    Py_ssize_t count;
    int taking; /* since a run was begun, no message of it was refused */
} Packer;

typedef struct {
    PyObject_HEAD
    PyObject *puts, *missing;
    PyTypeObject *packer;
    Packer *last; /* of `puts`, and still there if it is taking */
} Sender;

typedef struct {
    PyTypeObject *packer;
} State;

/* ------------------------------------------------------------------------------------------------ MessagePack */
static char *put_number(char *at, uint64_t value, int bytes)
{
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8)
        *at++ = (char)(value >> shift);
    return at;
}

static char *put_tagged(char *at, unsigned char tag, uint64_t value, int bytes)
{
    *at++ = (char)tag;
    return put_number(at, value, bytes);
}

static char *put_unsigned(char *at, uint64_t value)
{
    if (value < 0x80)
        return put_number(at, value, 1);
    if (value <= UINT8_MAX)
        return put_tagged(at, 0xcc, value, 1);
    if (value <= UINT16_MAX)
        return put_tagged(at, 0xcd, value, 2);
    if (value <= UINT32_MAX)
        return put_tagged(at, 0xce, value, 4);
    return put_tagged(at, 0xcf, value, 8);
}

static char *put_negative(char *at, int64_t value)
{
    if (value >= -32)
        return put_number(at, (uint64_t)value, 1);
    if (value >= INT8_MIN)
        return put_tagged(at, 0xd0, (uint64_t)value, 1);
    if (value >= INT16_MIN)
        return put_tagged(at, 0xd1, (uint64_t)value, 2);
    if (value >= INT32_MIN)
        return put_tagged(at, 0xd2, (uint64_t)value, 4);
    return put_tagged(at, 0xd3, (uint64_t)value, 8);
}

static char *put_float(char *at, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return put_tagged(at, 0xcb, bits, 8);
}

static char *put_text_header(char *at, uint64_t size)
{
    if (size < 32)
        return put_number(at, 0xa0 | size, 1);
    if (size <= UINT8_MAX)
        return put_tagged(at, 0xd9, size, 1);
    if (size <= UINT16_MAX)
        return put_tagged(at, 0xda, size, 2);
    return put_tagged(at, 0xdb, size, 4);
}

static char *put_bytes_header(char *at, uint64_t size)
{
    if (size <= UINT8_MAX)
        return put_tagged(at, 0xc4, size, 1);
    if (size <= UINT16_MAX)
        return put_tagged(at, 0xc5, size, 2);
    return put_tagged(at, 0xc6, size, 4);
}

static char *put_array_header(char *at, uint64_t count)
{
    if (count < 16)
        return put_number(at, 0x90 | count, 1);
    if (count <= UINT16_MAX)
        return put_tagged(at, 0xdc, count, 2);
    return put_tagged(at, 0xdd, count, 4);
}

/* ------------------------------------------------------------------------------------------------ packing */
enum { FAILED = -1, REFUSED = 0, TAKEN = 1 };

static int make_room(Packer *self, Py_ssize_t size)
{
    if (self->room - self->used >= size)
        return TAKEN;
    if (size > PY_SSIZE_T_MAX / 4 - self->used)
        return REFUSED;
    const Py_ssize_t wanted = self->used + size, doubled = 2 * self->room;
    const Py_ssize_t room = wanted > doubled ? wanted : doubled;
    char *grown = PyMem_Realloc(self->buffer, (size_t)room);
    if (grown == NULL) {
        PyErr_NoMemory();
        return FAILED;
    }
    self->buffer = grown;
    self->room = room;
    return TAKEN;
}

/* What was taken before the message at hand, `self->packed` messages, becomes a piece; this one begins the next. */
static int cut(Packer *self)
{
    const Py_ssize_t size = self->start;
    char header[LONGEST_HEADER];
    const Py_ssize_t head = put_array_header(header, (uint64_t)self->packed) - header;
    PyObject *body = PyBytes_FromStringAndSize(NULL, head + size);
    PyObject *count = body == NULL ? NULL : PyLong_FromSsize_t(self->packed);
    if (count == NULL) {
        Py_XDECREF(body);
        return FAILED;
    }
    char *data = PyBytes_AsString(body);
    memcpy(data, header, (size_t)head);
    memcpy(data + head, self->buffer, (size_t)size);
    int status = PyList_Append(self->pieces, count);
    if (status == 0 && (status = PyList_Append(self->pieces, body)) < 0) {
        const Py_ssize_t length = PyList_Size(self->pieces);
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        (void)PyList_SetSlice(self->pieces, length - 1, length, NULL);
        PyErr_Restore(type, value, trace);
    }
    Py_DECREF(count);
    Py_DECREF(body);
    if (status < 0)
        return FAILED;
    self->used -= size;
    memmove(self->buffer, self->buffer + size, (size_t)self->used);
    self->start = self->packed = 0;
    return TAKEN;
}

/* A run is cut before the message that it has no room for; one that has room in none is a run of its own. */
static int cut_if_full(Packer *self, Py_ssize_t more)
{
    return self->packed && self->used + more + LONGEST_HEADER > self->limit ? cut(self) : TAKEN;
}

/* What cannot be encoded is the business of whoever takes what is refused here. */
static int refuse_for(PyObject *expected)
{
    if (!PyErr_ExceptionMatches(expected))
        return FAILED;
    PyErr_Clear();
    return REFUSED;
}

static int put_data(Packer *self, const char *data, Py_ssize_t size, char *(*header)(char *, uint64_t))
{
    if (size > self->largest) /* no message may be so long; its length is 32 bits at most */
        return REFUSED;
    int status = cut_if_full(self, size); /* now, so that what is large need not be moved then */
    if (status == TAKEN)
        status = make_room(self, size + LONGEST_HEADER);
    if (status != TAKEN)
        return status;
    char *at = header == NULL ? self->buffer + self->used : header(self->buffer + self->used, (uint64_t)size);
    memcpy(at, data, (size_t)size);
    self->used = at + size - self->buffer;
    return TAKEN;
}

static int put_int(Packer *self, PyObject *value)
{
    int overflow;
    const long long small = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (small == -1 && !overflow && PyErr_Occurred())
        return FAILED;
    if (overflow < 0)
        return REFUSED;
    unsigned long long large = (unsigned long long)small;
    if (overflow > 0) {
        large = PyLong_AsUnsignedLongLong(value);
        if (large == (unsigned long long)-1 && PyErr_Occurred())
            return refuse_for(PyExc_OverflowError);
    }
    const int status = make_room(self, LONGEST_NUMBER);
    if (status != TAKEN)
        return status;
    char *at = self->buffer + self->used;
    at = !overflow && small < 0 ? put_negative(at, small) : put_unsigned(at, large);
    self->used = at - self->buffer;
    return TAKEN;
}

static int put_member(Packer *self, PackedField *field, PyObject *value)
{
    if (field->members == NULL)
        return REFUSED;
    PyObject *address = PyLong_FromVoidPtr(value);
    if (address == NULL)
        return FAILED;
    PyObject *encoded = PyDict_GetItemWithError(field->members, address);
    Py_DECREF(address);
    if (encoded == NULL)
        return PyErr_Occurred() ? FAILED : REFUSED;
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(encoded, &data, &size) < 0)
        return FAILED;
    return put_data(self, data, size, NULL);
}

static int put_value(Packer *self, PackedField *field, PyObject *value)
{
    const PyTypeObject *type = Py_TYPE(value);
    if (type == &PyUnicode_Type && field->kinds & TEXT) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(value, &size);
        return text == NULL ? refuse_for(PyExc_UnicodeEncodeError) : put_data(self, text, size, put_text_header);
    }
    if (type == &PyFloat_Type && field->kinds & FLOAT) {
        const int status = make_room(self, LONGEST_NUMBER);
        if (status == TAKEN)
            self->used = put_float(self->buffer + self->used, PyFloat_AsDouble(value)) - self->buffer;
        return status;
    }
    if (type == &PyLong_Type && field->kinds & INT)
        return put_int(self, value);
    if (type == &PyBytes_Type && field->kinds & BYTES) {
        char *data;
        Py_ssize_t size;
        if (PyBytes_AsStringAndSize(value, &data, &size) < 0)
            return FAILED;
        return put_data(self, data, size, put_bytes_header);
    }
    if (value == Py_None && field->kinds & NONE)
        return put_data(self, "\xc0", 1, NULL);
    if (type == &PyBool_Type && field->kinds & BOOL)
        return put_data(self, value == Py_True ? "\xc3" : "\xc2", 1, NULL);
    return put_member(self, field, value);
}

static int put_message(Packer *self, PyObject *message)
{
    if (Py_TYPE(message) != self->type)
        return REFUSED;
    char *prefix;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(self->prefix, &prefix, &size) < 0)
        return FAILED;
    int status = put_data(self, prefix, size, NULL);
    for (Py_ssize_t index = 0; status == TAKEN && index < self->field_count; index++) {
        PackedField *field = self->fields + index;
        PyObject *value = field->offset >= 0 ? Py_XNewRef(*(PyObject **)((char *)message + field->offset))
                                             : field->get(field->descriptor, message, (PyObject *)self->type);
        if (value == NULL) /* a field that was never set */
            return field->offset >= 0 ? REFUSED : refuse_for(PyExc_AttributeError);
        status = put_value(self, field, value);
        Py_DECREF(value);
    }
    return status;
}

static int add(Packer *self, PyObject *message)
{
    if (self->pieces == NULL) {
        PyErr_SetString(PyExc_ValueError, "no run was begun");
        return FAILED;
    }
    self->start = self->used;
    int status = put_message(self, message);
    if (status == TAKEN && self->used - self->start > self->largest)
        status = REFUSED;
    if (status == TAKEN)
        status = cut_if_full(self, 0);
    if (status != TAKEN) {
        self->used = self->start;
        return status;
    }
    self->packed++;
    self->count++;
    return TAKEN;
}

static void give_back(Packer *self)
{
    if (self->room > KEPT_BUFFER && self->used == 0) {
        PyMem_Free(self->buffer);
        self->buffer = NULL;
        self->room = 0;
    }
}

/* ------------------------------------------------------------------------------------------------ Packer */
static void forget_fields(Packer *self)
{
    for (Py_ssize_t index = 0; index < self->field_count; index++) {
        Py_XDECREF(self->fields[index].descriptor);
        Py_XDECREF(self->fields[index].members);
    }
    PyMem_Free(self->fields);
    self->fields = NULL;
    self->field_count = 0;
}

static int read_field(PackedField *field, PyTypeObject *type, PyObject *given)
{
    PyObject *descriptor, *members;
    unsigned long kinds;
    if (!PyTuple_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "a field is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(given, "OkO", &descriptor, &kinds, &members))
        return -1;
    field->get = (descrgetfunc)PyType_GetSlot(Py_TYPE(descriptor), Py_tp_descr_get);
    if (field->get == NULL || (members != Py_None && !PyDict_CheckExact(members))) {
        PyErr_SetString(PyExc_TypeError, "a field is a descriptor, its kinds, and None or a dict of members");
        return -1;
    }
    field->offset = -1;
#ifndef Py_GIL_DISABLED
    field->offset = offset_of(type, descriptor);
    if (field->offset < 0 && refuse_for(PyExc_Exception) == FAILED)
        return -1;
#else
    (void)type;
#endif
    field->descriptor = Py_NewRef(descriptor);
    field->kinds = kinds;
    field->members = members == Py_None ? NULL : Py_NewRef(members);
    return 0;
}

static PyObject *Packer_new(PyTypeObject *cls, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"type", "prefix", "fields", "limit", "largest", "refused", NULL};
    PyObject *type, *prefix, *fields, *refused;
    Py_ssize_t limit, largest;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!SO!nnO", names, &PyType_Type, &type, &prefix,
                                     &PyTuple_Type, &fields, &limit, &largest, &refused))
        return NULL;
    allocfunc allocate = PyType_GetSlot(cls, Py_tp_alloc);
    Packer *self = (Packer *)allocate(cls, 0);
    if (self == NULL)
        return NULL;
    self->type = (PyTypeObject *)Py_NewRef(type);
    self->prefix = Py_NewRef(prefix);
    self->refused = Py_NewRef(refused);
    self->limit = limit;
    self->largest = largest < UINT32_MAX ? largest : UINT32_MAX;
    const Py_ssize_t count = PyTuple_Size(fields);
    self->fields = PyMem_Calloc((size_t)count + 1, sizeof(PackedField));
    if (self->fields == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (; self->field_count < count; self->field_count++) {
        if (read_field(self->fields + self->field_count, self->type, PyTuple_GetItem(fields, self->field_count)) < 0) {
            Py_DECREF(self);
            return NULL;
        }
    }
    return (PyObject *)self;
}

static PyObject *Packer_begin(Packer *self, PyObject *pieces)
{
    if (!PyList_CheckExact(pieces)) {
        PyErr_SetString(PyExc_TypeError, "the pieces of a run go into a list");
        return NULL;
    }
    PyObject *before = self->pieces;
    self->pieces = Py_NewRef(pieces);
    self->used = self->packed = self->count = 0;
    self->taking = 1;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyObject *Packer_put(Packer *self, PyObject *message)
{
    const int status = add(self, message);
    return status == FAILED ? NULL : PyBool_FromLong(status);
}

static PyObject *Packer_end(Packer *self, PyObject *Py_UNUSED(ignored))
{
    self->start = self->used;
    if (self->packed && cut(self) == FAILED)
        return NULL;
    give_back(self);
    Py_RETURN_NONE;
}

static PyObject *Packer_clear_run(Packer *self, PyObject *Py_UNUSED(ignored))
{
    self->used = self->packed = self->count = 0;
    self->taking = 0;
    give_back(self);
    Py_CLEAR(self->pieces);
    Py_RETURN_NONE;
}

static int Packer_traverse(Packer *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->type);
    Py_VISIT(self->refused);
    Py_VISIT(self->pieces);
    for (Py_ssize_t index = 0; index < self->field_count; index++) {
        Py_VISIT(self->fields[index].descriptor);
        Py_VISIT(self->fields[index].members);
    }
    return 0;
}

static int Packer_clear(Packer *self)
{
    Py_CLEAR(self->refused); /* by which a lane refers to itself; the class and its fields refer to no packer */
    Py_CLEAR(self->pieces);
    self->used = self->packed = self->taking = 0;
    return 0;
}

static void Packer_dealloc(Packer *self)
{
    PyObject_GC_UnTrack(self);
    (void)Packer_clear(self);
    forget_fields(self);
    Py_CLEAR(self->prefix);
    Py_CLEAR(self->type);
    PyMem_Free(self->buffer);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef Packer_methods[] = {
    {"begin", (PyCFunction)Packer_begin, METH_O, "begin($self, pieces, /)\n--\n\nA run, whose pieces go into a list."},
    {"put", (PyCFunction)Packer_put, METH_O, "put($self, message, /)\n--\n\nTrue if the message was taken."},
    {"end", (PyCFunction)Packer_end, METH_NOARGS, "end($self)\n--\n\nAll that was taken is in pieces."},
    {"clear", (PyCFunction)Packer_clear_run, METH_NOARGS, "clear($self)\n--\n\nThere is no run any more."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Packer_members[] = {
    {"count", T_PYSSIZET, offsetof(Packer, count), READONLY, "messages that were taken since the run was begun"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Packer_slots[] = {
    {Py_tp_doc, "Packer(type, prefix, fields, limit, largest, refused)\n--\n\nEncodes messages of a class."},
    {Py_tp_new, Packer_new},
    {Py_tp_dealloc, Packer_dealloc},
    {Py_tp_traverse, Packer_traverse},
    {Py_tp_clear, Packer_clear},
    {Py_tp_methods, Packer_methods},
    {Py_tp_members, Packer_members},
    {0, NULL},
};

static PyType_Spec Packer_spec = {
    .name = "bus._send.Packer",
    .basicsize = sizeof(Packer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Packer_slots,
};

/* ------------------------------------------------------------------------------------------------ Sender */
static PyObject *Sender_new(PyTypeObject *cls, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"puts", "missing", NULL};
    PyObject *puts, *missing;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!O", names, &PyDict_Type, &puts, &missing))
        return NULL;
    State *state = PyType_GetModuleState(cls);
    allocfunc allocate = PyType_GetSlot(cls, Py_tp_alloc);
    Sender *self = state == NULL ? NULL : (Sender *)allocate(cls, 0);
    if (self == NULL)
        return NULL;
    self->puts = Py_NewRef(puts);
    self->missing = Py_NewRef(missing);
    self->packer = (PyTypeObject *)Py_NewRef((PyObject *)state->packer);
    return (PyObject *)self;
}

static int call_with(PyObject *callable, PyObject *message)
{
    PyObject *result = PyObject_CallFunctionObjArgs(callable, message, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int pack_or_refuse(Packer *packer, PyObject *message)
{
    const int status = add(packer, message);
    if (status != REFUSED)
        return status == TAKEN ? 0 : -1;
    packer->taking = 0;
    PyObject *refused = Py_NewRef(packer->refused == NULL ? Py_None : packer->refused);
    const int done = call_with(refused, message);
    Py_DECREF(refused);
    return done;
}

static int put_where_it_belongs(Sender *self, PyObject *message)
{
    PyObject *put = PyDict_GetItemWithError(self->puts, (PyObject *)Py_TYPE(message));
    if (put == NULL) {
        if (PyErr_Occurred())
            return -1;
        put = self->missing;
    }
    Py_INCREF(put); /* what it does may change what takes the next message */
    int status;
    if (Py_TYPE(put) == self->packer) {
        PyObject *before = (PyObject *)self->last;
        self->last = (Packer *)Py_NewRef(put);
        Py_XDECREF(before);
        status = pack_or_refuse((Packer *)put, message);
    } else {
        status = call_with(put, message);
    }
    Py_DECREF(put);
    return status;
}

static PyObject *Sender_send(Sender *self, PyObject *message)
{
    Packer *last = self->last;
    int status;
    if (last != NULL && last->taking && last->type == Py_TYPE(message)) {
        Py_INCREF((PyObject *)last);
        status = pack_or_refuse(last, message);
        Py_DECREF((PyObject *)last);
    } else {
        status = put_where_it_belongs(self, message);
    }
    if (status < 0 || FAILPOINT("send-buffered") < 0)
        return NULL;
    Py_RETURN_NONE;
}

static int Sender_traverse(Sender *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->packer);
    Py_VISIT(self->puts);
    Py_VISIT(self->missing);
    Py_VISIT(self->last);
    return 0;
}

static void Sender_dealloc(Sender *self)
{
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->puts);
    Py_CLEAR(self->missing);
    Py_CLEAR(self->last);
    Py_CLEAR(self->packer);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef Sender_methods[] = {
    {"send", (PyCFunction)Sender_send, METH_O, "send($self, message, /)\n--\n\nTo whatever takes messages of its class."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Sender_slots[] = {
    {Py_tp_doc, "Sender(puts, missing)\n--\n\nThe `send` of one handler; see bus/send.py."},
    {Py_tp_new, Sender_new},
    {Py_tp_dealloc, Sender_dealloc},
    {Py_tp_traverse, Sender_traverse}, /* no clear: the dict and the callable that it is in a cycle with have theirs */
    {Py_tp_methods, Sender_methods},
    {0, NULL},
};

static PyType_Spec Sender_spec = {
    .name = "bus._send.Sender",
    .basicsize = sizeof(Sender),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Sender_slots,
};

/* ------------------------------------------------------------------------------------------------ the module */
static int module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->packer = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Packer_spec, NULL);
    if (state->packer == NULL || PyModule_AddType(module, state->packer) < 0)
        return -1;
    PyObject *sender = PyType_FromModuleAndSpec(module, &Sender_spec, NULL);
    const int status = sender == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)sender);
    Py_XDECREF(sender);
    return status < 0 || PyModule_AddIntMacro(module, NONE) < 0 || PyModule_AddIntMacro(module, BOOL) < 0 ||
                   PyModule_AddIntMacro(module, INT) < 0 || PyModule_AddIntMacro(module, FLOAT) < 0 ||
                   PyModule_AddIntMacro(module, TEXT) < 0 || PyModule_AddIntMacro(module, BYTES) < 0
               ? -1
               : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    if (state != NULL)
        Py_VISIT(state->packer);
    return 0;
}

static int module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if (state != NULL)
        Py_CLEAR(state->packer);
    return 0;
}

static void module_free(void *module) { (void)module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bus._send",
    .m_doc = "What takes the messages that a handler sends, in C; see bus/send.py.",
    .m_size = sizeof(State),
#ifdef RING_FAILPOINTS
    .m_methods = failpoint_methods,
#endif
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__send(void) { return PyModuleDef_Init(&module_definition); }
