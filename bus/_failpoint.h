/* Where a process may die in a torture run, as the comments `# failpoint: name` of the Python modules; the same names.
 * Nothing but in a build for it: then less than 0 with an error set, if an error is what was asked for. */
#ifndef RINGLEADER_FAILPOINT_H
#define RINGLEADER_FAILPOINT_H

#ifdef RING_FAILPOINTS
#define PY_SSIZE_T_CLEAN
#include <Python.h>

int failpoint(const char *name);
extern PyMethodDef failpoint_methods[]; /* of the module */
#define FAILPOINT(name) failpoint(name)
#else
#define FAILPOINT(name) 0
#endif

#endif
