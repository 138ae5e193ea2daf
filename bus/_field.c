/* A descriptor knows where its field is, but tells it nobody; the table that its class was made with does. */
#include "_field.h"

#include <structmember.h>

Py_ssize_t offset_of(PyTypeObject *type, PyObject *descriptor)
{
    PyObject *owner = PyObject_GetAttrString(descriptor, "__objclass__");
    PyObject *name = owner == NULL ? NULL : PyObject_GetAttrString(descriptor, "__name__");
    Py_ssize_t offset = -1;
    if (name != NULL && PyType_Check(owner) && PyType_IsSubtype(type, (PyTypeObject *)owner)) {
        const PyMemberDef *member = PyType_GetSlot((PyTypeObject *)owner, Py_tp_members);
        for (; offset < 0 && member != NULL && member->name != NULL; member++) {
            if (member->type == T_OBJECT_EX && PyUnicode_CompareWithASCIIString(name, member->name) == 0)
                offset = member->offset;
        }
    }
    Py_XDECREF(name);
    Py_XDECREF(owner);
    if (offset < 0 && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "a field is told by the descriptor of an object in its class");
    return offset;
}
