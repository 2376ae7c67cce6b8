#include "interpreter.hpp"

#include <Python.h>
#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "telecine/errors.hpp"

namespace fs = std::filesystem;

namespace telecine {
namespace {

const std::string kVersion = std::to_string(PY_MAJOR_VERSION) + "." + std::to_string(PY_MINOR_VERSION);

struct Environment {
    fs::path root;    // canonical
    fs::path python;  // its executable, which Python finds everything else from; it is not run
};

bool is_there(const fs::path& path) {
    std::error_code ignored;
    return fs::exists(path, ignored);
}

// What Python itself would end the process for, said before it is started.
Environment look_at(const std::string& path) {
    std::error_code failed;
    Environment found{fs::canonical(path, failed), {}};
    if (failed || !fs::is_directory(found.root, failed))
        throw BackendError("environment " + path + " is no folder", "a virtual environment, or a Python prefix",
                           "Make one: python3 -m venv DIR; DIR/bin/pip install \"telecine[onnxruntime]\"");
    for (const char* name : {"python3", "python"})
        if (found.python.empty() && is_there(found.root / "bin" / name)) found.python = found.root / "bin" / name;
    if (found.python.empty())
        throw BackendError("environment " + path + " has no bin/python3", "a virtual environment, or a Python prefix",
                           "Give the folder that holds bin/ and lib/.");
    const std::string library = "python" + kVersion;
    if (!is_there(found.root / "lib" / library) && !is_there(found.root / "lib64" / library))
        throw BackendError("environment " + path + " has no lib/" + library,
                           "an environment of Python " + kVersion + ", which this library was built for",
                           "Build it again with -DPython_EXECUTABLE=" + found.python.string());
    return found;
}

// NumPy's modules are not linked with libpython. Where a host loads this library with dlopen(RTLD_LOCAL), they would
// not find its symbols.
void share_symbols() {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(&Py_IsInitialized), &info) && info.dli_fname)
        dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

void check(const PyStatus& status, const char* doing) {
    if (!PyStatus_Exception(status)) return;
    throw BackendError(
        std::string("Python failed ") + doing + ": " + (status.err_msg ? status.err_msg : "no reason given"),
        "an environment that its own bin/python3 runs in", "Try: bin/python3 -c 'import telecine'");
}

void initialise(const Environment& environment) {
    // Isolated: no signal handlers, no locale, no environment variables; the process is the host's. Its locale may be
    // "C", where Python would read files as ASCII.
    PyPreConfig before;
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    check(Py_PreInitialize(&before), "before its start");

    PyConfig config;
    PyConfig_InitIsolatedConfig(&config);
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, environment.python.c_str());
    if (!PyStatus_Exception(status)) status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    check(status, "to start");
}

}  // namespace

void start_interpreter(const std::string& path) {
    static fs::path running;
    const Environment environment = look_at(path);
    if (running == environment.root) return;
    if (!running.empty())
        throw BackendError("environment " + path + " in a process whose Python runs over " + running.string(),
                           "the same one: an interpreter stays until its process ends", "Start another process.");
    if (Py_IsInitialized())
        throw BackendError("a Python interpreter that telecine did not start runs in this process",
                           "a process without one", "Use the Python package there: import telecine.");
    share_symbols();
    initialise(environment);
    PyEval_SaveThread();  // each call takes the lock for itself
    running = environment.root;
}

}  // namespace telecine
