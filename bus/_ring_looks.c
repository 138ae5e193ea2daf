/* Looks at many rings in one call: what a worker does between two batches must not cost by the edge. `ring.py` says what
 * each of them means.
 */
#define _GNU_SOURCE
#include "_ring_object.h"

typedef int (*Look)(Ring *ring); /* 1 if there is something, 0 if not, -1 with an error set */

static int is_waiting(Ring *ring)
{
    uint64_t tail;
    if (ring_checked(ring, ring_tail(&ring->end, &tail), 0) < 0)
        return -1;
    return tail != ring->end.cursor;
}

static int has_answered(Ring *ring)
{
    uint64_t ack = ring_load(&ring->end, ACK), resend = ring_load(&ring->end, RESEND_ASKED);
    int news = ack != ring->ack || resend != ring->resend;
    ring->ack = ack;
    ring->resend = resend;
    return news;
}

/* The indices of those of the list that have something. */
static PyObject *look(PyObject *type, PyObject *rings, Look has_something)
{
    if (!PyList_Check(rings))
        return PyErr_Format(PyExc_TypeError, "a list of rings is looked at, not %R", rings);
    PyObject *found = PyList_New(0);
    if (found == NULL)
        return NULL;
    for (Py_ssize_t index = 0; index < PyList_Size(rings); index++) {
        PyObject *item = PyList_GetItem(rings, index);
        if (Py_TYPE(item) != (PyTypeObject *)type) {
            PyErr_Format(PyExc_TypeError, "a list of rings is looked at, and there is %R", item);
            goto failed;
        }
        Ring *ring = (Ring *)item;
        int something = ring_require_open(ring) < 0 ? -1 : has_something(ring);
        if (something < 0)
            goto failed;
        if (something) {
            PyObject *number = PyLong_FromSsize_t(index);
            int status = number == NULL ? -1 : PyList_Append(found, number);
            Py_XDECREF(number);
            if (status < 0)
                goto failed;
        }
    }
    return found;
failed:
    Py_DECREF(found);
    return NULL;
}

PyObject *Ring_waiting(PyObject *type, PyObject *rings) { return look(type, rings, is_waiting); }

PyObject *Ring_answered(PyObject *type, PyObject *rings) { return look(type, rings, has_answered); }
