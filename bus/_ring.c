/* The ring and the doorbell in C. `ring.py` and `doorbell.py` say what each method means, `layout.py` shows the memory;
 * this does the same to the same memory, so that either implementation talks to the other.
 *
 *     _ring_core.h, _doorbell_core.h         what happens in shared memory; nothing of Python
 *     _ring_object.c, _doorbell_object.c     the classes
 *     _ring_looks.c                          what the class Ring does with many rings at once
 *     _ring.c                                the module, and what the classes share
 */
#define _GNU_SOURCE
#include "_binding.h"

#include "_doorbell_core.h"
#include "_ring_core.h"

State *state_of(void *object) { return PyType_GetModuleState(Py_TYPE((PyObject *)object)); }

void raise_with(PyObject *type, PyObject *arguments)
{
    PyObject *error = arguments == NULL ? NULL : PyObject_CallObject(type, arguments);
    Py_XDECREF(arguments);
    if (error != NULL) {
        PyErr_SetObject(type, error);
        Py_DECREF(error);
    }
}

PyObject *export_bytes(PyObject *object, Py_buffer *buffer)
{
    PyObject *whole = PyMemoryView_FromObject(object);
    if (whole == NULL)
        return NULL;
    PyObject *view = PyObject_CallMethod(whole, "cast", "s", "B");
    Py_DECREF(whole);
    if (view != NULL && PyObject_GetBuffer(view, buffer, PyBUF_WRITABLE) < 0)
        Py_CLEAR(view);
    return view;
}

int release_view(PyObject *view)
{
    PyObject *result = PyObject_CallMethod(view, "release", NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static PyObject *attribute(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    PyObject *found = module == NULL ? NULL : PyObject_GetAttrString(module, name);
    Py_XDECREF(module);
    return found;
}

static int add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int status = type == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)type);
    Py_XDECREF(type);
    return status;
}

static int module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if ((state->layout_error = attribute("bus.errors", "LayoutError")) == NULL ||
        (state->record_too_large = attribute("bus.errors", "RecordTooLarge")) == NULL ||
        (state->ring_corrupt = attribute("bus.errors", "RingCorrupt")) == NULL ||
        (state->check_ring = attribute("bus.layout", "check_ring")) == NULL)
        return -1;
    if (PyModule_AddIntMacro(module, RING_VERSION) < 0 || PyModule_AddIntMacro(module, HEADER_SIZE) < 0 ||
        PyModule_AddIntMacro(module, RECORD_HEADER) < 0 || PyModule_AddIntMacro(module, WORD) < 0 ||
        PyModule_AddIntMacro(module, TAIL) < 0 || PyModule_AddIntMacro(module, HEAD) < 0 ||
        PyModule_AddIntMacro(module, ACK) < 0 || PyModule_AddIntMacro(module, RESEND_ASKED) < 0 ||
        PyModule_AddIntConstant(module, "RECORD", KIND_RECORD) < 0 ||
        PyModule_AddIntConstant(module, "PADDING", KIND_PADDING) < 0 ||
        PyModule_AddIntConstant(module, "MIN_CAPACITY", (long)MIN_CAPACITY) < 0)
        return -1;
#ifdef HAVE_FUTEX
    if (PyModule_AddIntConstant(module, "FUTEX", 1) < 0)
        return -1;
#else
    if (PyModule_AddIntConstant(module, "FUTEX", 0) < 0)
        return -1;
#endif
    return add_type(module, &Ring_spec) < 0 || add_type(module, &Doorbell_spec) < 0 ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_VISIT(state->layout_error);
        Py_VISIT(state->record_too_large);
        Py_VISIT(state->ring_corrupt);
        Py_VISIT(state->check_ring);
    }
    return 0;
}

static int module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_CLEAR(state->layout_error);
        Py_CLEAR(state->record_too_large);
        Py_CLEAR(state->ring_corrupt);
        Py_CLEAR(state->check_ring);
    }
    return 0;
}

static void module_free(void *module) { (void)module_clear(module); }

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bus._ring",
    .m_doc = "The ring and the doorbell in C; see bus/ring.py and bus/doorbell.py.",
    .m_size = sizeof(State),
#ifdef RING_FAILPOINTS
    .m_methods = failpoint_methods,
#endif
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__ring(void) { return PyModuleDef_Init(&module_definition); }
