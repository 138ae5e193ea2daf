/* Where an object of a class with slots has a field. */
#ifndef RINGLEADER_FIELD_H
#define RINGLEADER_FIELD_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Of the PyObject * that a descriptor of this class, or of a base of it, describes: NULL while the field was never set.
 * Less than 0, with an error set, if it describes anything else. */
Py_ssize_t offset_of(PyTypeObject *type, PyObject *descriptor);

#endif
