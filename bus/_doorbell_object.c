/* The class Doorbell: `_doorbell_core.h` for Python. `doorbell.py` says what each method means. */
#define _GNU_SOURCE
#include "_binding.h"

#include <math.h>

#include "_doorbell_core.h"

#define LONGEST_WAIT 3600.0

typedef struct {
    PyObject_HEAD
    PyObject *view; /* NULL once closed */
    Py_buffer buffer;
    uint32_t *word;
    Py_ssize_t waiting; /* threads in `wait`, which use the word without the GIL */
} Doorbell;

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
    bell_arm(bell->word);
    if (FAILPOINT("doorbell-armed") < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Doorbell_wait(Doorbell *bell, PyObject *args)
{
    double timeout;
    if (!PyArg_ParseTuple(args, "d:wait", &timeout))
        return NULL;
    if (bell_require_open(bell) < 0)
        return NULL;
    if (!isfinite(timeout))
        return PyErr_Format(PyExc_ValueError, "a wait has to be bounded, not %R", args);
    uint32_t *word = bell->word;
    const double until = bell_now() + (timeout < LONGEST_WAIT ? timeout : LONGEST_WAIT);
    int status = 0;
    bell->waiting++; /* keeps the word mapped */
    for (double left = timeout; left > 0 && status == 0 && bell_armed(word); left = until - bell_now()) {
        Py_BEGIN_ALLOW_THREADS
        status = bell_sleep(word, left < SLICE ? left : SLICE);
        Py_END_ALLOW_THREADS
        const int interrupted = status == EINTR;
        if (status == 0 || interrupted) {
            status = PyErr_CheckSignals();
            if (interrupted)
                break;
        } else {
            errno = status;
            PyErr_SetFromErrno(PyExc_OSError);
            status = -1;
        }
    }
    bell->waiting--;
    if (status < 0)
        return NULL;
    return PyBool_FromLong(!bell_armed(word));
}

static PyObject *Doorbell_disarm(Doorbell *bell, PyObject *Py_UNUSED(ignored))
{
    if (bell_require_open(bell) < 0)
        return NULL;
    bell_disarm(bell->word);
    Py_RETURN_NONE;
}

static PyObject *Doorbell_ring(Doorbell *bell, PyObject *Py_UNUSED(ignored))
{
    if (bell_require_open(bell) < 0)
        return NULL;
    if (!bell_clear(bell->word))
        Py_RETURN_FALSE;
    if (FAILPOINT("doorbell-cleared") < 0)
        return NULL;
    bell_wake(bell->word);
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
    {"wait", (PyCFunction)Doorbell_wait, METH_VARARGS,
     "wait($self, timeout, /)\n--\n\nSleeps while the word is armed."},
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

PyType_Spec Doorbell_spec = {
    .name = "bus._ring.Doorbell",
    .basicsize = sizeof(Doorbell),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Doorbell_slots,
};
