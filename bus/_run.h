/* A run of messages that are made one at a time: `_run.c`, and for `_progress.c`, which goes through it. */
#ifndef RINGLEADER_RUN_H
#define RINGLEADER_RUN_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

typedef struct {
    PyTypeObject *run; /* which `_run.c` makes, by what stands here */
} ProgressState;

extern PyType_Spec run_spec, unpacker_spec;

Py_ssize_t run_length(PyObject *run);

/* The message behind the last one that this gave. There must be one. */
PyObject *run_next(PyObject *run);

/* 0, or less than 0 with an error set. */
int run_add_kinds(PyObject *module);

#endif
