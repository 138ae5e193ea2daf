/* Looks at many rings in one call: what a worker does between two batches must not cost by the edge. `ring.py` says what
 * each of them means.
 */
#define _GNU_SOURCE
#include "_doorbell_core.h"
#include "_ring_object.h"

#include <math.h>

#define PAUSES 8 /* between two looks: some 0.3 us in which another thread may have the GIL */

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

PyObject *Ring_waiting(PyObject *type, PyObject *const *args, Py_ssize_t count)
{
    if (count < 1 || count > 2)
        return PyErr_Format(PyExc_TypeError, "waiting() takes rings and seconds, not %zd arguments", count);
    double seconds = count < 2 ? 0.0 : PyFloat_AsDouble(args[1]);
    if (seconds == -1.0 && PyErr_Occurred())
        return NULL;
    if (!isfinite(seconds))
        return PyErr_Format(PyExc_ValueError, "a look has to be bounded, not for %R seconds", args[1]);
    PyObject *found = look(type, args[0], is_waiting);
    if (seconds <= 0)
        return found;
    for (double until = bell_now() + seconds; found != NULL && PyList_Size(found) == 0 && bell_now() < until;) {
        Py_DECREF(found);
        /* The rings are looked at with the GIL only: without it another thread may close them. */
        Py_BEGIN_ALLOW_THREADS
        for (int pauses = 0; pauses < PAUSES; pauses++)
            bell_pause();
        Py_END_ALLOW_THREADS
        found = look(type, args[0], is_waiting);
    }
    return found;
}

PyObject *Ring_answered(PyObject *type, PyObject *rings) { return look(type, rings, has_answered); }
