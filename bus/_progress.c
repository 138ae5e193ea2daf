/* What is in progress in a run of messages. `progress.py` says what it does; this does the same, since it runs once per
 * message. The cells are another process's to read and only ours to write: plain aligned stores of 64 bits are enough,
 * relaxed atomics so that no compiler splits them. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdint.h>
#include <time.h>

#include "_run.h"

/* From progress.py; a test compares them. */
enum { QUICK_NS = 50000, LONGEST = 16 };

typedef struct {
    PyObject_HEAD
    Py_buffer cells;
    Py_ssize_t seq, since;
    PyObject *messages; /* a list or a Run, while it is iterated over */
    int run;            /* it is a Run */
    Py_ssize_t next, due, stride;
    uint64_t first, until, read, current;
    int exact;
    Py_ssize_t done;
} Progress;

static void store(Progress *self, Py_ssize_t cell, uint64_t value)
{
    __atomic_store_n((uint64_t *)self->cells.buf + cell, value, __ATOMIC_RELAXED);
}

static void tell(Progress *self, uint64_t seq)
{
    self->current = seq;
    store(self, self->seq, seq);
}

static uint64_t clock_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int Progress_init(Progress *self, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"cells", "seq", "since", NULL};
    PyObject *cells;
    Py_ssize_t seq, since;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "Onn", names, &cells, &seq, &since))
        return -1;
    Py_buffer view;
    if (PyObject_GetBuffer(cells, &view, PyBUF_WRITABLE) < 0)
        return -1;
    const Py_ssize_t count = view.len / 8;
    if (seq < 0 || seq >= count || since < 0 || since >= count || (uintptr_t)view.buf % 8 != 0) {
        PyErr_Format(PyExc_IndexError, "cells %zd and %zd do not both lie among %zd aligned ones", seq, since, count);
        PyBuffer_Release(&view);
        return -1;
    }
    if (self->cells.obj != NULL)
        PyBuffer_Release(&self->cells);
    self->cells = view;
    self->seq = seq;
    self->since = since;
    return 0;
}

static PyObject *Progress_begin(Progress *self, PyObject *arguments)
{
    PyObject *messages;
    unsigned long long first, until;
    int exact;
    if (!PyArg_ParseTuple(arguments, "OKKp", &messages, &first, &until, &exact))
        return NULL;
    ProgressState *state = PyType_GetModuleState(Py_TYPE((PyObject *)self));
    if (state == NULL)
        return NULL;
    if (!PyList_Check(messages) && Py_TYPE(messages) != state->run) {
        PyErr_SetString(PyExc_TypeError, "the messages of a run are a list or a Run");
        return NULL;
    }
    if (self->cells.obj == NULL) {
        PyErr_SetString(PyExc_ValueError, "this Progress is closed");
        return NULL;
    }
    PyObject *old = self->messages;
    Py_INCREF(messages);
    self->messages = messages;
    self->run = Py_TYPE(messages) == state->run;
    self->next = self->due = self->done = 0;
    self->stride = 1;
    self->first = first;
    self->until = until;
    self->read = 0;
    self->exact = exact;
    Py_XDECREF(old);
    Py_INCREF((PyObject *)self);
    return (PyObject *)self;
}

static PyObject *Progress_tell(Progress *self, PyObject *given)
{
    const uint64_t seq = PyLong_AsUnsignedLongLong(given);
    if (seq == (uint64_t)-1 && PyErr_Occurred())
        return NULL;
    if (self->cells.obj == NULL) {
        PyErr_SetString(PyExc_ValueError, "this Progress is closed");
        return NULL;
    }
    store(self, self->since, clock_ns());
    tell(self, seq);
    Py_RETURN_NONE;
}

static PyObject *Progress_finish(Progress *self, PyObject *Py_UNUSED(ignored))
{
    if (self->until != (uint64_t)PY_SSIZE_T_MAX) {
        self->until = 0;
        self->due = self->next;
    }
    Py_RETURN_NONE;
}

static PyObject *end(Progress *self)
{
    self->done = self->next;
    Py_CLEAR(self->messages);
    return NULL;
}

static PyObject *Progress_next(Progress *self)
{
    if (self->messages == NULL)
        return NULL;
    const Py_ssize_t index = self->next;
    if (index >= (self->run ? run_length(self->messages) : PyList_Size(self->messages)))
        return end(self);
    self->done = index;
    if (index == self->due) {
        const uint64_t now = clock_ns();
        if (now > self->until && index > 0)
            return end(self);
        const int quick = index > 0 && now - self->read < QUICK_NS && !self->exact;
        self->stride = !quick ? 1 : 2 * self->stride < LONGEST ? 2 * self->stride : LONGEST;
        self->due = index + self->stride;
        self->read = now;
        store(self, self->since, now);
    }
    tell(self, self->first + (uint64_t)index);
    self->next = index + 1;
    return self->run ? run_next(self->messages) : Py_XNewRef(PyList_GetItem(self->messages, index));
}

static PyObject *Progress_iter(PyObject *self)
{
    Py_INCREF(self);
    return self;
}

static PyObject *Progress_close(Progress *self, PyObject *Py_UNUSED(ignored))
{
    Py_CLEAR(self->messages);
    if (self->cells.obj != NULL)
        PyBuffer_Release(&self->cells);
    self->cells.obj = NULL;
    Py_RETURN_NONE;
}

static int Progress_traverse(Progress *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->messages);
    /* Not the cells: a memoryview that the collector clears under its buffer could not be released any more. */
    return 0;
}

static int Progress_clear(Progress *self)
{
    Py_CLEAR(self->messages);
    return 0;
}

static void Progress_dealloc(Progress *self)
{
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->messages);
    if (self->cells.obj != NULL)
        PyBuffer_Release(&self->cells);
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    freefunc release = PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef Progress_methods[] = {
    {"begin", (PyCFunction)Progress_begin, METH_VARARGS,
     "begin($self, messages, first, until, exact, /)\n--\n\nItself, to iterate over a list of messages."},
    {"tell", (PyCFunction)Progress_tell, METH_O, "tell($self, seq, /)\n--\n\nThis message is in progress from now on."},
    {"finish", (PyCFunction)Progress_finish, METH_NOARGS, "finish($self)\n--\n\nAs if time were up."},
    {"close", (PyCFunction)Progress_close, METH_NOARGS, "close($self)\n--\n\nLets go of the cells."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Progress_members[] = {
    {"done", T_PYSSIZET, offsetof(Progress, done), READONLY, "messages that were handled"},
    {"seq", T_ULONGLONG, offsetof(Progress, current), READONLY, "the message that was told last"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Progress_slots[] = {
    {Py_tp_doc, "Progress(cells, seq, since)\n--\n\nWhat is in progress in a run of messages; see bus/progress.py."},
    {Py_tp_init, Progress_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, Progress_dealloc},
    {Py_tp_traverse, Progress_traverse},
    {Py_tp_clear, Progress_clear},
    {Py_tp_iter, Progress_iter},
    {Py_tp_iternext, Progress_next},
    {Py_tp_methods, Progress_methods},
    {Py_tp_members, Progress_members},
    {0, NULL},
};

static PyType_Spec Progress_spec = {
    .name = "bus._progress.Progress",
    .basicsize = sizeof(Progress),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Progress_slots,
};

static int module_exec(PyObject *module)
{
    ProgressState *state = PyModule_GetState(module);
    state->run = (PyTypeObject *)PyType_FromModuleAndSpec(module, &run_spec, NULL);
    if (state->run == NULL || PyModule_AddType(module, state->run) < 0)
        return -1;
    PyType_Spec *specs[] = {&unpacker_spec, &Progress_spec};
    for (int index = 0; index < 2; index++) {
        PyObject *type = PyType_FromModuleAndSpec(module, specs[index], NULL);
        const int status = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
        Py_XDECREF(type);
        if (status < 0)
            return -1;
    }
    return PyModule_AddIntMacro(module, QUICK_NS) < 0 || PyModule_AddIntMacro(module, LONGEST) < 0
               ? -1
               : run_add_kinds(module);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    ProgressState *state = PyModule_GetState(module);
    if (state != NULL)
        Py_VISIT(state->run);
    return 0;
}

static int module_clear(PyObject *module)
{
    ProgressState *state = PyModule_GetState(module);
    if (state != NULL)
        Py_CLEAR(state->run);
    return 0;
}

static void module_free(void *module) { (void)module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bus._progress",
    .m_doc = "What is in progress, in C; see bus/progress.py.",
    .m_size = sizeof(ProgressState),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__progress(void) { return PyModuleDef_Init(&module_definition); }
