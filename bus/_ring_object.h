/* The class Ring as its two files share it: `_ring_object.c` and, for many rings at once, `_ring_looks.c`. */
#ifndef RINGLEADER_RING_OBJECT_H
#define RINGLEADER_RING_OBJECT_H

#include "_binding.h"
#include "_ring_core.h"

enum { MOST_RESERVED = 64 };

typedef struct {
    PyObject *view;
    uint64_t end; /* of its record */
} Reserved;

typedef struct {
    PyObject_HEAD
    PyObject *view;   /* memoryview of the whole buffer as bytes; NULL once closed */
    Py_buffer buffer; /* what `view` exports to us */
    RingEnd end;
    unsigned long long epoch;
    Reserved reserved[MOST_RESERVED]; /* from `first_reserved` on, around the end */
    int first_reserved, reserved_count;
    uint64_t ack, resend; /* as `answered` saw them last */
} Ring;

int ring_require_open(const Ring *ring);

/* Raises what a step of the core came to, if it came to nothing; else the step. */
int ring_checked(Ring *ring, int step, uint64_t size);

PyObject *Ring_waiting(PyObject *type, PyObject *const *args, Py_ssize_t count);
PyObject *Ring_answered(PyObject *type, PyObject *rings);

#endif
