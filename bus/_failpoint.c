/* The failpoints of a build that has some; each extension has its own. */
#include "_failpoint.h"

#ifdef RING_FAILPOINTS
static PyObject *reached; /* of the process, not of the module: such a build is for a test */

int failpoint(const char *name)
{
    PyObject *result = reached == NULL ? Py_NewRef(Py_None) : PyObject_CallFunction(reached, "s", name);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyObject *on_failpoint(PyObject *Py_UNUSED(module), PyObject *callable)
{
    PyObject *before = reached;
    reached = Py_NewRef(callable);
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

PyMethodDef failpoint_methods[] = {
    {"on_failpoint", on_failpoint, METH_O,
     "on_failpoint(callable, /)\n--\n\nIs called with the name of each failpoint that is come by."},
    {NULL, NULL, 0, NULL},
};
#endif
