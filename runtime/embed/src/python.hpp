// Calls into Python: its lock, and its exceptions as telecine's.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <exception>
#include <new>
#include <string>

#include "telecine/errors.hpp"

namespace telecine {

namespace py = pybind11;

// A text as UTF-8, whatever it holds (names of files need not be Unicode).
inline std::string text(py::handle value) {
    const auto string = py::reinterpret_steal<py::object>(PyObject_Str(value.ptr()));
    if (!string) throw py::error_already_set();
    const auto bytes =
        py::reinterpret_steal<py::object>(PyUnicode_AsEncodedString(string.ptr(), "utf-8", "backslashreplace"));
    if (!bytes) throw py::error_already_set();
    return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

template <class Kind>
[[noreturn]] void raise(py::handle error) {
    throw Kind(text(error.attr("got")), text(error.attr("expected")), text(error.attr("fix")));
}

// Throw what a Python exception means.
[[noreturn]] inline void translate(const py::error_already_set& error) {
    const py::module_ errors = py::module_::import("telecine.errors");
    const auto is = [&](const char* name) { return py::isinstance(error.value(), errors.attr(name)); };
    if (is("SourceError")) raise<SourceError>(error.value());
    if (is("BundleError")) raise<BundleError>(error.value());
    if (is("RequestError")) raise<RequestError>(error.value());
    if (is("BackendError")) raise<BackendError>(error.value());
    if (is("EngineError")) raise<EngineError>(error.value());
    if (is("Cancelled")) raise<Cancelled>(error.value());
    if (error.matches(PyExc_MemoryError)) throw std::bad_alloc();
    // `format` joins what a report of the interpreter would print.
    const py::object lines =
        py::module_::import("traceback").attr("format_exception")(error.type(), error.value(), error.trace());
    throw Error(text(error.type().attr("__name__")) + ": " + text(error.value()), "none of Python's own exceptions",
                text(py::str("").attr("join")(lines)));
}

// What a function makes with Python's lock held; every exception is an `Error`.
template <class Function>
auto in_python(Function&& function) {
    py::gil_scoped_acquire lock;
    try {
        try {
            return function();
        } catch (const py::error_already_set& error) {
            translate(error);
        }
    } catch (const Error&) {
        throw;
    } catch (const std::bad_alloc&) {
        throw BackendError("out of memory", "a request that fits this machine's memory",
                           "Ask for fewer frames, a smaller size or a smaller batch, or free memory.");
    } catch (const std::exception& error) {  // of pybind11; or what explains an exception failed in its turn
        throw Error(error.what(), "a Python environment in order", "Try: bin/python3 -c 'import telecine'");
    }
}

// Let go of an object, from any thread, with Python's lock held or not.
inline void drop(py::object& object) noexcept {
    py::gil_scoped_acquire lock;
    py::error_scope kept;  // what is being raised stays so
    object = py::object();
}

}  // namespace telecine
