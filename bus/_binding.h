/* What the two classes of the extension share: its state, its errors, buffers.
 *
 * What holds for both:
 * - Between checking that one is open and the last touch of its memory no Python code can run: buffers are acquired
 *   and lists are made before. Where that is not possible (push_many), the check is repeated.
 * - The GIL is released only while waiting, and no PyObject is touched then. Free-threaded builds get the GIL back when
 *   they import this module, because it does not claim to do without.
 */
#ifndef RINGLEADER_BINDING_H
#define RINGLEADER_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_failpoint.h"

typedef struct {
    PyObject *layout_error;
    PyObject *record_too_large;
    PyObject *ring_corrupt;
    PyObject *check_ring;
} State;

extern PyType_Spec Ring_spec, Doorbell_spec;

State *state_of(void *object);

/* Raises `type(*arguments)`; steals the arguments. */
void raise_with(PyObject *type, PyObject *arguments);

/* A writable view of `object` as bytes: the memoryview, and the buffer that it exports. */
PyObject *export_bytes(PyObject *object, Py_buffer *buffer);

int release_view(PyObject *view);

#endif
